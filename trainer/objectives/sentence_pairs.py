"""Next-sentence prediction: which two sentences a pair is made of, and how they stand in a row.

Shapes: D documents, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.errors import DataError
from trainer.objectives.draws import Draws

# Hugging Face's BertForNextSentencePrediction and BertForPreTraining: 0 follows, 1 is random.
FOLLOWS, RANDOM = 0, 1


@dataclass(frozen=True)
class Pair:
    """Two sentences as (document, sentence in it)."""

    first: tuple[int, int]
    second: tuple[int, int]
    label: int  # FOLLOWS or RANDOM


def num_pairs(sentences_D: NDArray[np.int64]) -> int:
    """How many sentences have a next one in their document."""
    return int(np.maximum(sentences_D - 1, 0).sum())


def pair_at(sentences_D: NDArray[np.int64], index: int, *, seed: int) -> Pair:
    """The pair of global sample `index`, a pure function of it and the seed.

    `sentences_D`: how many sentences each document has. The first sentence goes through all that
    have a next one, in order; a random second one comes from another document. Exactly one of the
    pairs 2k and 2k + 1 is real: 50 % in every even stretch, not only on average.

    Source: Devlin et al. 2019 (BERT), sec. 3.1, task 2, and appendix A.2.
    Raises: DataError where no document has two sentences, or there is no other document.
    """
    before_D = np.cumsum(np.maximum(sentences_D - 1, 0))
    if len(before_D) == 0 or before_D[-1] == 0:
        raise DataError("next-sentence prediction needs documents of two sentences or more")
    if np.count_nonzero(sentences_D) < 2:
        raise DataError("next-sentence prediction needs two documents: random pairs cross them")
    place = index % int(before_D[-1])
    document = int(np.searchsorted(before_D, place, side="right"))
    sentence = place - (int(before_D[document - 1]) if document else 0)
    first = (document, sentence)
    real_is_even = Draws("pair", seed, index // 2).uniform() < 0.5
    if (index % 2 == 0) == real_is_even:
        return Pair(first, (document, sentence + 1), FOLLOWS)
    return Pair(first, _elsewhere(sentences_D, document, Draws("other", seed, index)), RANDOM)


def pair_row(
    first: Sequence[int], second: Sequence[int], *, start: int, end: int, max_T: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """[start] first [end] second [end] as (inputs_T, segments_T); the longer loses its tail first.

    Unlike BERT's own code, which cuts either end at random: the sentence's start is kept.
    Raises: DataError if there is no room for one token of each.
    """
    room = max_T - 3
    if room < 2:
        raise DataError(f"a pair of sentences needs 5 tokens at least, but rows have {max_T}")
    len_first = min(len(first), max(room - len(second), (room + 1) // 2))
    len_second = min(len(second), room - len_first)
    inputs = [start, *first[:len_first], end, *second[:len_second], end]
    segments = [0] * (len_first + 2) + [1] * (len_second + 1)
    return np.array(inputs, np.int64), np.array(segments, np.int64)


def _elsewhere(sentences_D: NDArray[np.int64], document: int, draws: Draws) -> tuple[int, int]:
    """A sentence of another document; all of them are equally likely."""
    counts_D = sentences_D.copy()
    counts_D[document] = 0
    before_D = np.cumsum(counts_D)
    place = int(draws.below(int(before_D[-1]), 1)[0])
    other = int(np.searchsorted(before_D, place, side="right"))
    return other, place - (int(before_D[other - 1]) if other else 0)
