"""Does a model that is 80 % sure come out right four times in five?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from trainer.evals.metrics.base import Sums, ratio


@dataclass(frozen=True)
class Bin:
    """Answers with a confidence in (low, high]."""

    low: float
    high: float
    answers: int
    confidence: float  # its mean; NaN in an empty bin, as is the next
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Sums: answers, confidence and right answers of each bin.

    Source: Guo et al. 2017, eq. 3 (expected calibration error) and 5 (maximum).
    """

    bins: int = 15

    @property
    def size(self) -> int:
        return 3 * self.bins

    def sums_of(self, predicted: ArrayLike, reference: ArrayLike) -> Sums:
        """Probabilities (E,) of the answers that were given, and whether they were right (E,)."""
        sure, right = np.asarray(predicted, np.float64).ravel(), np.asarray(reference).ravel()
        which = np.clip(np.ceil(sure * self.bins).astype(np.int64) - 1, 0, self.bins - 1)
        columns = (np.ones(len(sure)), sure, right.astype(np.float64))
        return np.concatenate([np.bincount(which, c, minlength=self.bins) for c in columns])

    def diagram(self, sums: Sums) -> list[Bin]:
        answers, sure, right = sums.reshape(3, -1)
        return [
            Bin(b / self.bins, (b + 1) / self.bins, int(n), ratio(sure[b], n), ratio(right[b], n))
            for b, n in enumerate(answers)
        ]

    def value(self, sums: Sums) -> dict[str, float]:
        answers, sure, right = sums.reshape(3, -1)
        total = answers.sum()
        if not total:
            return dict.fromkeys(("calibration_error", "max_calibration_error"), float("nan"))
        there = answers > 0
        gaps = np.abs(sure[there] - right[there])
        return {
            "calibration_error": float(gaps.sum() / total),
            "max_calibration_error": float((gaps / answers[there]).max()),
        }
