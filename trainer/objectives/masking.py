"""Masked language modelling: which tokens of a row are hidden, and behind what.

Dynamic: another step hides other tokens of the same row. Everything is a pure function of (seed,
step, row), where `row` is the global sample index, so that ranks and resumes do not matter.

Shapes: R rows, T positions, U units (tokens, words).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import IGNORED
from trainer.dist.draws import Draws

Ids = NDArray[np.int64]
_SPAN_STOPS = 0.2  # each further word of a span: with chance 0.8
_LONGEST_SPAN = 10


@dataclass(frozen=True, eq=False)
class Masking:
    """How rows are masked. Of the chosen tokens `to_mask` become the mask token, `to_random` a
    random ordinary token, and the others stay as they are; all of them are predicted.

    `unit`: "token" chooses tokens; "word" whole words, each token of which is replaced by a draw of
    its own; "span" runs of words, replaced as one.

    Source: Devlin et al. 2019 (BERT), sec. 3.1, task 1 (15 %, 80/10/10); whole words: README of
    google-research/bert, 2019-05-31; spans: Joshi et al. 2020 (SpanBERT), sec. 3.1.
    """

    mask_id: int
    ordinary_ids: Ids  # what a random token is drawn from: no special ones
    rate: float = 0.15
    to_mask: float = 0.8
    to_random: float = 0.1
    unit: Literal["token", "word", "span"] = "token"


def ordinary_ids(vocab_size: int, special_ids: Collection[int]) -> Ids:
    """All ids but the special ones."""
    return np.setdiff1d(np.arange(vocab_size), np.fromiter(special_ids, np.int64))


def masked_row(
    ids_T: Ids,
    may_mask_T: NDArray[np.bool_],
    *,
    masking: Masking,
    seed: int,
    step: int,
    row: int,
    words_T: Ids | None = None,
) -> tuple[Ids, Ids]:
    """The row with some tokens hidden, and its labels: the hidden tokens, IGNORED elsewhere.

    `may_mask_T` is false on special tokens and padding. `words_T` numbers the words (neighbours of
    one number are one word); without it every token is a word.

    The number of chosen tokens is `rate` x those that may be, rounded up with the chance of its
    fraction: the expected rate is exact, and no row differs from it by a token. Words that would
    exceed it are passed over, as in BERT, so that a row of long words may get a few less.
    """
    draws = Draws("mask", masking.unit, seed, step, row)
    budget = int(masking.rate * may_mask_T.sum() + draws.uniform())
    if masking.unit == "token":
        candidates = np.flatnonzero(may_mask_T)
        chosen = candidates[draws.order(len(candidates))[:budget]]
        fates = draws.uniforms(len(chosen))
    else:
        starts_U, ends_U = _words(may_mask_T, words_T)
        if masking.unit == "word":
            chosen = _whole_words(starts_U, ends_U, budget=budget, draws=draws)
            fates = draws.uniforms(len(chosen))
        else:
            chosen, spans = _spans(starts_U, ends_U, budget=budget, draws=draws)
            fates = draws.uniforms(len(starts_U))[spans]
    labels_T = np.full_like(ids_T, IGNORED)
    labels_T[chosen] = ids_T[chosen]
    inputs_T = ids_T.copy()
    randoms = masking.ordinary_ids[draws.below(len(masking.ordinary_ids), len(chosen))]
    replaced = np.where(fates < masking.to_mask, masking.mask_id, randoms)
    kept = fates >= masking.to_mask + masking.to_random
    inputs_T[chosen] = np.where(kept, ids_T[chosen], replaced)
    return inputs_T, labels_T


def masked_rows(
    ids_RT: torch.Tensor,
    may_mask_RT: torch.Tensor,
    *,
    masking: Masking,
    seed: int,
    step: int,
    rows: Sequence[int],
    words_RT: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`masked_row` for each row of a micro-batch on the CPU; `rows` are global sample indices.

    Rows beyond `rows` (padding of the batch) stay as they are, without labels.
    """
    inputs_RT, labels_RT = ids_RT.clone(), torch.full_like(ids_RT, IGNORED)
    for r, row in enumerate(rows):
        inputs_T, labels_T = masked_row(
            ids_RT[r].numpy(),
            may_mask_RT[r].numpy(),
            masking=masking,
            seed=seed,
            step=step,
            row=row,
            words_T=None if words_RT is None else words_RT[r].numpy(),
        )
        inputs_RT[r], labels_RT[r] = torch.from_numpy(inputs_T), torch.from_numpy(labels_T)
    return inputs_RT, labels_RT


def _words(may_mask_T: NDArray[np.bool_], words_T: Ids | None) -> tuple[Ids, Ids]:
    """Where each word that may be masked starts and ends."""
    numbers_T = np.arange(len(may_mask_T)) if words_T is None else words_T
    goes_on_T = np.zeros(len(may_mask_T), bool)
    goes_on_T[1:] = (numbers_T[1:] == numbers_T[:-1]) & may_mask_T[:-1]
    starts_U = np.flatnonzero(may_mask_T & ~goes_on_T)
    ends_here_T = np.append(~(goes_on_T[1:] & may_mask_T[1:]), True)
    return starts_U, np.flatnonzero(may_mask_T & ends_here_T) + 1


def _whole_words(starts_U: Ids, ends_U: Ids, *, budget: int, draws: Draws) -> Ids:
    chosen: list[int] = []
    for word in draws.order(len(starts_U)):
        if len(chosen) + ends_U[word] - starts_U[word] <= budget:
            chosen += range(starts_U[word], ends_U[word])
        if len(chosen) == budget:
            break
    return np.array(chosen, np.int64)


def _spans(starts_U: Ids, ends_U: Ids, *, budget: int, draws: Draws) -> tuple[Ids, Ids]:
    """Chosen positions, and for each the number of its span.

    Spans start at words in random order. A span ends early at a gap (a special token), at another
    span, and where the budget is spent.
    """
    lengths_U = _span_lengths(draws.uniforms(len(starts_U)))
    taken_U = np.zeros(len(starts_U), bool)
    chosen: list[int] = []
    spans: list[int] = []
    for span, first in enumerate(draws.order(len(starts_U))):
        for word in range(first, min(first + lengths_U[span], len(starts_U))):
            gap = word > first and starts_U[word] != ends_U[word - 1]
            length = ends_U[word] - starts_U[word]
            if taken_U[word] or gap or len(chosen) + length > budget:
                break
            taken_U[word] = True
            chosen += range(starts_U[word], ends_U[word])
            spans += [span] * int(length)
        if len(chosen) == budget:
            break
    return np.array(chosen, np.int64), np.array(spans, np.int64)


def _span_lengths(uniforms_U: NDArray[np.float64]) -> Ids:
    """Geometric, given that it is at most 10: the mean of 3.8 that SpanBERT, sec. 3.1 names."""
    mass = 1.0 - (1.0 - _SPAN_STOPS) ** _LONGEST_SPAN
    lengths = np.ceil(np.log1p(-uniforms_U * mass) / np.log1p(-_SPAN_STOPS))
    clipped: Ids = np.clip(lengths, 1, _LONGEST_SPAN).astype(np.int64)
    return clipped
