"""What a vocabulary says of its tokens: which one masks, which are ordinary, which begin a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer.data.tokenizer import TextTokenizer
from trainer.errors import DataError

MASKS = ("[MASK]", "<mask>")  # BERT's, RoBERTa's
PAIR_MARKS = ("[CLS]", "[SEP]", "[PAD]")
_GOES_ON = "##"  # WordPiece
_BEGINS = ("\u0120", "\u2581")  # a space before it, in byte-level BPE and in SentencePiece


@dataclass(frozen=True)
class PairMarks:
    """Ids of what stands before a pair of texts, behind each, and where there is nothing."""

    start: int
    end: int
    padding: int


def pair_marks(folder: Path) -> PairMarks:
    """Of the tokenizer of a store. Raises: DataError if it has none: they are BERT's."""
    vocabulary = TextTokenizer.open(folder).tokenizer.get_vocab(with_added_tokens=True)
    missing = [name for name in PAIR_MARKS if name not in vocabulary]
    if missing:
        raise DataError(
            f"the tokenizer has no {' and no '.join(missing)}, which pairs of sentences are marked "
            "with; take BERT's, as in data.tokenizer.path=FOLDER, or task=masked_lm"
        )
    return PairMarks(*(vocabulary[name] for name in PAIR_MARKS))


@dataclass(frozen=True, eq=False)
class TokenKinds:
    """By id, V long. Special tokens are not ordinary; `begins` is true of those too."""

    mask_id: int
    ordinary_V: NDArray[np.bool_]
    begins_V: NDArray[np.bool_]


def token_kinds(folder: Path) -> TokenKinds:
    """Of the tokenizer of a store. Raises: DataError if it has no mask token."""
    tokenizer = TextTokenizer.open(folder)
    vocabulary: Mapping[str, int] = tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    mask = next((vocabulary[name] for name in MASKS if name in vocabulary), None)
    if mask is None:
        raise DataError(
            f"the tokenizer has no mask token (asked for {' and '.join(MASKS)}), which masked_lm "
            "needs; take one of an encoder, as in data.tokenizer.path=FOLDER"
        )
    added: Mapping[int, Any] = tokenizer.tokenizer.get_added_tokens_decoder()
    special = [number for number, token in added.items() if token.special]
    ordinary_V = np.zeros(tokenizer.vocab_size, dtype=bool)
    ordinary_V[list(vocabulary.values())] = True
    ordinary_V[[*special, mask, tokenizer.end_of_text_id]] = False
    begins_V = np.ones(tokenizer.vocab_size, dtype=bool)
    mark = _begin_mark(vocabulary)
    for text, number in vocabulary.items():
        begins_V[number] = text.startswith(mark) if mark else not text.startswith(_GOES_ON)
    begins_V |= ~ordinary_V
    return TokenKinds(mask, ordinary_V, begins_V)


def _begin_mark(vocabulary: Mapping[str, int]) -> str:
    """What its tokens have that begin a word; nothing where WordPiece marks the others."""
    return next((mark for mark in _BEGINS if any(t.startswith(mark) for t in vocabulary)), "")
