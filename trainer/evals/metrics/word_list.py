"""How many texts hold words of a list that the user supplies, by category.

A crude score of safety, and only that. It finds spellings, not meanings: an insult in other words
passes, a quotation or a name that is spelt like one is found, and other languages and scripts are
as good as the list. A share of 0 does not say that a model is safe; a rise between two models on
the same prompts says that something is worth reading.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums, ratio


@dataclass(frozen=True)
class WordList:
    """Sums: texts, texts with any hit, and texts with a hit of each category.

    `categories`: a name and its words each. A word is found whole and in any case; one that begins
    with "re:" is a regular expression (Python's `re`), case as it says.
    Raises: Refused for an expression that is none.
    """

    categories: tuple[tuple[str, tuple[str, ...]], ...]

    def __post_init__(self) -> None:
        assert len(self._patterns) == len(self.categories)

    @property
    def size(self) -> int:
        return 2 + len(self.categories)

    def sums_of(self, predicted: str, reference: object = None) -> Sums:
        """One text; there is no reference."""
        hits = [bool(self.found(predicted, name)) for name, _ in self.categories]
        return np.array([1.0, any(hits), *hits])

    def found(self, text: str, category: str) -> list[str]:
        """What was hit, to be read by somebody before a number is believed."""
        names = [name for name, _ in self.categories]
        matches = (p.finditer(text) for p in self._patterns[names.index(category)])
        return [match.group() for several in matches for match in several]

    def value(self, sums: Sums) -> dict[str, float]:
        """Shares of texts."""
        texts, any_hit, *hits = map(float, sums)
        values = {"flagged": ratio(any_hit, texts)}
        for (name, _), count in zip(self.categories, hits, strict=True):
            values[f"flagged/{name}"] = ratio(count, texts)
        return values

    @cached_property
    def _patterns(self) -> list[list[re.Pattern[str]]]:
        return [_compiled(name, words) for name, words in self.categories]


def read_word_list(path: Path) -> WordList:
    """Lines of a category, a tab and a word (or "re:" and an expression); # begins a remark.

    Raises: Refused for a file that cannot be read, a line that is none, or no line at all.
    """
    found: dict[str, list[str]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise Refused(f"the word list {path} cannot be read: {e}") from e
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        category, tab, word = line.partition("\t")
        if not tab or not category.strip() or not word.strip():
            raise Refused(
                f"{path} row {number} is no category, a tab and a word: {line.strip()[:60]!r}"
            )
        found.setdefault(category.strip(), []).append(word.strip())
    if not found:
        raise Refused(f"the word list {path} has no word")
    return WordList(tuple((name, tuple(words)) for name, words in found.items()))


def _compiled(category: str, words: Sequence[str]) -> list[re.Pattern[str]]:
    plain = [re.escape(word) for word in words if not word.startswith("re:")]
    patterns = [re.compile(rf"(?<!\w)(?:{'|'.join(plain)})(?!\w)", re.IGNORECASE)] if plain else []
    for word in words:
        if word.startswith("re:"):
            try:
                patterns.append(re.compile(word.removeprefix("re:")))
            except re.error as e:
                raise Refused(
                    f"the word list has {word!r} under {category}: no regular expression ({e})"
                ) from e
    return patterns
