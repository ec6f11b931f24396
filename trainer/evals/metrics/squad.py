"""Extractive answers by the rules that were published with SQuAD.

Source: Rajpurkar et al. 2016, sec. 6.1 (the best of all given answers; articles and punctuation do
not count); Rajpurkar, Jia and Liang 2018 (questions without an answer: all or nothing). The
order of steps is that of the evaluation scripts 1.1 and 2.0 on rajpurkar.github.io/SQuAD-explorer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.evals.metrics.base import Sums, ratio

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Squad:
    """Sums: exact, f1 and questions of those with an answer, then of those without.

    Versions differ for a given answer that is only an article or punctuation: 2.0 leaves it out.
    """

    version: Literal["1.1", "2.0"] = "2.0"

    @property
    def size(self) -> int:
        return 6

    def sums_of(self, predicted: str, reference: Sequence[str]) -> Sums:
        """One question: the answer ("" for none), and all given ones (empty: it has none)."""
        given = list(reference)
        if self.version == "2.0":
            given = [answer for answer in given if normalised(answer)]
        given = given or [""]
        exact = max(float(normalised(predicted) == normalised(answer)) for answer in given)
        overlap = max(self._f1(predicted, answer) for answer in given)
        sums = np.zeros((2, 3))
        sums[0 if reference else 1] = exact, overlap, 1.0
        return sums.ravel()

    def value(self, sums: Sums) -> dict[str, float]:
        exact, overlap, questions = sums.reshape(2, 3).sum(0)
        values = {"exact_match": ratio(exact, questions), "f1": ratio(overlap, questions)}
        if sums[5]:  # else there are no such questions, and the parts are the whole
            values |= {
                "has_answer_exact_match": ratio(sums[0], sums[2]),
                "has_answer_f1": ratio(sums[1], sums[2]),
                "no_answer_accuracy": ratio(sums[4], sums[5]),
            }
        return {name: float(value) for name, value in values.items()}

    def _f1(self, predicted: str, answer: str) -> float:
        chosen, given = normalised(predicted).split(), normalised(answer).split()
        if self.version == "2.0" and not (chosen and given):
            return float(chosen == given)
        common = (Counter(chosen) & Counter(given)).total()
        return 2 * common / (len(chosen) + len(given)) if common else 0.0


def normalised(text: str) -> str:
    """Lower case, without punctuation, then without articles, single spaces."""
    bare = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", bare).split())
