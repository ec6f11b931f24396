"""Correlations of predicted and given numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums, ratio

_MOST_ROWS = 1_000_000


@dataclass(frozen=True)
class Pearson:
    """Also the mean squared and absolute error. Sums of powers, in fp64.

    Sums of squares lose digits where numbers lie far from 0 compared with their spread: at a
    thousand times the spread six digits of 16. `centre` is taken off first; any constant will do.
    """

    centre: float = 0.0

    @property
    def size(self) -> int:
        return 8

    def sums_of(self, predicted: ArrayLike, reference: ArrayLike) -> Sums:
        """Numbers (E,)."""
        x = np.asarray(predicted, np.float64) - self.centre
        y = np.asarray(reference, np.float64) - self.centre
        off = x - y
        sums = (x, y, x * x, y * y, x * y, off * off, np.abs(off))
        return np.array([len(x), *(column.sum() for column in sums)], np.float64)

    def value(self, sums: Sums) -> dict[str, float]:
        n, x, y, xx, yy, xy, squared, absolute = (float(number) for number in sums)
        spread = (n * xx - x * x) * (n * yy - y * y)
        return {
            "pearson": (n * xy - x * y) / spread**0.5 if spread > 0 else float("nan"),
            "mean_squared_error": ratio(squared, n),
            "mean_absolute_error": ratio(absolute, n),
        }


@dataclass(frozen=True)
class Column:
    """Numbers of examples, and which rows of the evaluation they are."""

    rows_E: ArrayLike
    values_E: ArrayLike


@dataclass(frozen=True)
class Spearman:
    """Exact, ties included: ranks need all numbers, so the sums are two columns of `rows` numbers
    (and a third that counts), each example in its own row and zeros elsewhere: 24 bytes a row.

    A histogram of fixed size was rejected: its error depends on the model's outputs.
    Raises: Refused beyond a million rows.
    """

    rows: int

    def __post_init__(self) -> None:
        if self.rows > _MOST_ROWS:
            raise Refused(
                f"Spearman's correlation keeps every number, and {self.rows:,} rows are more than "
                f"the {_MOST_ROWS:,} it is made for: evaluate fewer rows, or use pearson"
            )

    @property
    def size(self) -> int:
        return 3 * self.rows

    def sums_of(self, predicted: Column, reference: ArrayLike) -> Sums:
        columns = np.zeros((3, self.rows))
        columns[0, np.asarray(predicted.rows_E)] = predicted.values_E
        columns[1, np.asarray(predicted.rows_E)] = reference
        columns[2, np.asarray(predicted.rows_E)] = 1.0
        return columns.ravel()

    def value(self, sums: Sums) -> dict[str, float]:
        predicted, reference, counted = sums.reshape(3, -1)
        assert counted.max(initial=0.0) <= 1.0, "a row was scored twice"
        there = counted > 0
        whole = Pearson()
        ranks = whole.sums_of(_ranks(predicted[there]), _ranks(reference[there]))
        return {"spearman": whole.value(ranks)["pearson"]}


def _ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0, less the mean; equal numbers share the mean of their ranks."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    firsts = np.cumsum(counts) - counts
    ranks: NDArray[np.float64] = (firsts + (counts - 1) / 2)[which] - (len(numbers) - 1) / 2
    return ranks
