"""Documents -> token ids in flat arrays, by the fastest library that proves itself equal.

gigatoken (optional; the one door to it) is 50 times as fast as `tokenizers`. It is young, so it is
used only while its ids equal those of `tokenizers` on a sample of the very corpus: some documents
before the work starts, and one more of every chunk. The first difference ends its use, and what
it made is thrown away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.tokenizer import TextTokenizer

CHECK_CHARACTERS = 16_384  # of each chunk: 0.4 % of its text, a fifth of gigatoken's time
Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


class AcceleratorDiffers(Exception):
    """gigatoken's ids are not those of `tokenizers` on a document of this corpus."""


@dataclass(frozen=True, eq=False)
class EncodedChunk:
    """Shapes: D documents, N tokens; every document ends with the end-of-text id."""

    tokens_N: Ids
    lengths_D: npt.NDArray[np.int64]
    text_bytes_D: npt.NDArray[np.int64]


class Encoder:
    """Encodes with `tokenizers`, or with gigatoken where `accelerated`."""

    def __init__(self, folder: Path, *, accelerated: bool, parallel: bool) -> None:
        self._tokenizer = TextTokenizer.open(folder)
        self._dtype = token_dtype(self._tokenizer.vocab_size)
        self._specials = self._tokenizer.special_texts
        self._fast = _Gigatoken(self._tokenizer, parallel=parallel) if accelerated else None

    def encode(self, texts: Sequence[str]) -> EncodedChunk:
        """Raises: AcceleratorDiffers."""
        fast = self._fast
        if fast is None or any(special in text for text in texts for special in self._specials):
            lengths, flat = _flat(self._tokenizer.encode_batch(texts))
        else:
            lengths, flat = fast.encode(texts)
            fast.check(texts, lengths, flat)
        return EncodedChunk(
            self._closed(lengths, flat),
            lengths + 1,
            np.array([_utf8_length(text) for text in texts], dtype=np.int64),
        )

    def _closed(self, lengths: npt.NDArray[np.int64], flat: npt.NDArray[Any]) -> Ids:
        """The documents with the end-of-text id behind each."""
        tokens: Ids = np.empty(len(flat) + len(lengths), dtype=self._dtype)
        ends = np.cumsum(lengths + 1) - 1
        inside = np.ones(len(tokens), dtype=np.bool_)
        inside[ends] = False
        tokens[inside] = flat
        tokens[ends] = self._tokenizer.end_of_text_id
        return tokens


def accelerator_fault(folder: Path, *, sample: Sequence[str]) -> str | None:
    """Why gigatoken is not to be used with this tokenizer and corpus; None if it is equal."""
    if not sample:
        return "there is no text to check it on"
    tokenizer = TextTokenizer.open(folder)
    specials = tokenizer.special_texts
    plain = [text for text in sample if not any(special in text for special in specials)]
    try:
        lengths, flat = _Gigatoken(tokenizer, parallel=False).encode(plain)
    except ImportError:
        return "it is not installed (pip install gigatoken)"
    except BaseException as e:  # a Rust panic is no Exception
        if isinstance(e, KeyboardInterrupt | SystemExit):
            raise
        return f"it failed: {type(e).__name__}: {str(e).partition(chr(10))[0]}"
    expected_lengths, expected = _flat(tokenizer.encode_batch(plain))
    if not np.array_equal(lengths, expected_lengths) or not np.array_equal(flat, expected):
        return "its ids differ from those of tokenizers on a sample of this corpus"
    return None


def token_dtype(vocab_size: int) -> Any:
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32).newbyteorder("<")


class _Gigatoken:
    def __init__(self, tokenizer: TextTokenizer, *, parallel: bool) -> None:
        import awkward  # type: ignore[import-untyped,unused-ignore]
        import gigatoken

        self._awkward = awkward
        self._reference = tokenizer
        self._parallel = parallel
        self._fast = gigatoken.Tokenizer(tokenizer.tokenizer)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        ragged = self._fast.encode_batch(list(texts), parallel=self._parallel)
        lengths = np.asarray(self._awkward.num(ragged)).astype(np.int64)
        return lengths, np.asarray(self._awkward.flatten(ragged))

    def check(
        self, texts: Sequence[str], lengths: npt.NDArray[np.int64], flat: npt.NDArray[Any]
    ) -> None:
        """Compare one document, another one in each chunk. Raises: AcceleratorDiffers."""
        short = [i for i, text in enumerate(texts) if len(text) <= CHECK_CHARACTERS]
        if not short:
            return
        chosen = short[len(flat) % len(short)]
        begin = int(lengths[:chosen].sum())
        found = flat[begin : begin + int(lengths[chosen])].tolist()
        if found != self._reference.encode(texts[chosen]):
            raise AcceleratorDiffers


def _flat(ids: Sequence[Sequence[int]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
    lengths = np.fromiter((len(row) for row in ids), dtype=np.int64, count=len(ids))
    flat = np.empty(int(lengths.sum()), dtype=np.uint32)
    begin = 0
    for row in ids:
        flat[begin : begin + len(row)] = row
        begin += len(row)
    return lengths, flat


def _utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
