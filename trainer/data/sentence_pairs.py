"""Next-sentence prediction: which two sentences a pair is made of, and how they stand in a row.

Shapes: D documents, T positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.dist.draws import Draws
from trainer.errors import DataError

# Hugging Face's BertForNextSentencePrediction and BertForPreTraining: 0 follows, 1 is random.
FOLLOWS, RANDOM = 0, 1


@dataclass(frozen=True)
class Pair:
    """Two sentences as (document, sentence in it)."""

    first: tuple[int, int]
    second: tuple[int, int]
    label: int  # FOLLOWS or RANDOM


class SentencePairs:
    """`sentences_D`: how many sentences each document has.

    The first sentences of pairs are all that have a next one, in order: `places` from 0. A random
    second one comes from another document. Exactly one of the pairs of samples 2k and 2k + 1 is
    real: 50 % in every even stretch, not only on average.

    Source: Devlin et al. 2019 (BERT), sec. 3.1, task 2, and appendix A.2.
    """

    def __init__(self, sentences_D: NDArray[np.int64]) -> None:
        self._sentences_D = sentences_D
        self._ends_D = np.cumsum(sentences_D)
        self._place_ends_D = np.cumsum(np.maximum(sentences_D - 1, 0))

    @property
    def places(self) -> int:
        return int(self._place_ends_D[-1]) if len(self._place_ends_D) else 0

    def check(self) -> None:
        """Raises: DataError where no document has two sentences, or there is no other document."""
        if not self.places:
            raise DataError("next-sentence prediction needs documents of two sentences or more")
        if np.count_nonzero(self._sentences_D) < 2:
            raise DataError("next-sentence prediction needs two documents: random pairs cross them")

    def at(self, place: int, *, sample: int, seed: int) -> Pair:
        """The pair that begins at `place`: a pure function of it, the seed and the sample."""
        document = int(np.searchsorted(self._place_ends_D, place, side="right"))
        sentence = place - (int(self._place_ends_D[document - 1]) if document else 0)
        first = (document, sentence)
        real_is_even = Draws("pair", seed, sample // 2).uniform() < 0.5
        if (sample % 2 == 0) == real_is_even:
            return Pair(first, (document, sentence + 1), FOLLOWS)
        return Pair(first, self._elsewhere(document, Draws("other", seed, sample)), RANDOM)

    def _elsewhere(self, document: int, draws: Draws) -> tuple[int, int]:
        """A sentence of another document; all of them are equally likely."""
        own = int(self._sentences_D[document])
        place = int(draws.below(int(self._ends_D[-1]) - own, 1)[0])
        if place >= int(self._ends_D[document]) - own:
            place += own
        other = int(np.searchsorted(self._ends_D, place, side="right"))
        return other, place - (int(self._ends_D[other - 1]) if other else 0)


def num_pairs(sentences_D: NDArray[np.int64]) -> int:
    """How many sentences have a next one in their document."""
    return SentencePairs(sentences_D).places


def pair_at(sentences_D: NDArray[np.int64], index: int, *, seed: int) -> Pair:
    """The pair of global sample `index`, in the order of the corpus, as often as need be.

    Raises: DataError as `SentencePairs.check`.
    """
    pairs = SentencePairs(sentences_D)
    pairs.check()
    return pairs.at(index % pairs.places, sample=index, seed=seed)


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
