"""Does a corpus hold what a model is to be evaluated on: long runs of words that both have.

Source: Brown et al. 2020, appendix C: 13-grams of words, in lower case and without punctuation. A
shorter text says too little and is not judged.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainer.data.audit_copies import shingles

RUN = 13  # words
_WORD = re.compile(r"\w+")
_Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Overlap:
    """Of one evaluation set. `found`: rows of which the corpus has a run, counted from 1."""

    rows: int
    too_short: int
    found: tuple[int, ...]


class Evaluations:
    """Sets of texts by name, kept as hashes: 16 bytes a run of words, however large the corpus."""

    def __init__(self, sets: Mapping[str, Iterable[str]], *, run: int = RUN) -> None:
        self._run = run
        self._rows: list[tuple[str, int]] = []
        self._sizes: dict[str, tuple[int, int]] = {}
        hashes = [np.zeros(0, dtype=np.uint64)]
        owners = [np.zeros(0, dtype=np.int64)]
        for name, texts in sets.items():
            rows = too_short = 0
            for rows, text in enumerate(texts, 1):
                found = runs_of(text, run=run)
                too_short += found is None
                if found is not None:
                    hashes.append(found)
                    owners.append(np.full(len(found), len(self._rows), dtype=np.int64))
                    self._rows.append((name, rows))
            self._sizes[name] = (rows, too_short)
        flat = np.concatenate(hashes)
        order = np.argsort(flat, kind="stable")
        self._hashes, self._owners = flat[order], np.concatenate(owners)[order]
        self._seen: set[int] = set()

    def shares(self, text: str) -> bool:
        """Whether a text of the corpus has a run of theirs; whose is remembered."""
        mine = runs_of(text, run=self._run)
        if mine is None or not len(self._hashes):
            return False
        begins = np.searchsorted(self._hashes, mine, side="left")
        ends = np.searchsorted(self._hashes, mine, side="right")
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
            self._seen.update(self._owners[begin:end].tolist())
        return bool((ends > begins).any())

    def overlaps(self) -> dict[str, Overlap]:
        """By the name of the set, of all texts that were asked about so far."""
        found: dict[str, list[int]] = {name: [] for name in self._sizes}
        for owner in sorted(self._seen):
            name, row = self._rows[owner]
            found[name].append(row)
        return {name: Overlap(*self._sizes[name], tuple(found[name])) for name in self._sizes}


def words_of(text: str) -> _Hashes:
    """A number a word, whatever its case and what stands around it."""
    return np.array([zlib.crc32(w.encode()) for w in _WORD.findall(text.lower())], dtype=np.uint64)


def runs_of(text: str, *, run: int = RUN) -> _Hashes | None:
    """Hashes of the runs of words; None of a text that has not one."""
    words = words_of(text)
    return shingles(words, size=run) if len(words) >= run else None
