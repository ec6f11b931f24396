"""What a metric is, and how its sums travel.

    sums = metric.sums_of(predicted, reference)     of an example or a batch, on one rank
    sums + sums                                     over batches and ranks, in any order
    metric.value(sums)                              names -> numbers, the same on every rank

The vector's length depends on the metric's settings only, never on the data: all ranks add vectors
of one shape, also those that saw no example.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Sums = NDArray[np.float64]


class Metric(Protocol):
    """Pure. What `predicted` and `reference` are is said by each metric."""

    @property
    def size(self) -> int:
        """How many numbers its sums are."""

    def sums_of(self, predicted: Any, reference: Any) -> Sums: ...

    def value(self, sums: Sums) -> dict[str, float]: ...


class Running:
    """A metric and the sums of what it has seen so far."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.sums: Sums = np.zeros(metric.size)

    def add(self, predicted: Any, reference: Any) -> None:
        self.sums += self.metric.sums_of(predicted, reference)

    def value(self) -> dict[str, float]:
        return self.metric.value(self.sums)


def named(name: str, sums: Sums) -> dict[str, float]:
    """As floats by name, for what adds up dicts (Task.score): "name[0]", "name[1]", ..."""
    return {f"{name}[{index}]": float(number) for index, number in enumerate(sums)}


def taken(name: str, size: int, totals: Mapping[str, float]) -> Sums:
    """The vector that `named` spread out; zeros where a number is absent."""
    return np.array([totals.get(f"{name}[{index}]", 0.0) for index in range(size)])


def ratio(part: float, whole: float) -> float:
    """NaN of nothing."""
    return part / whole if whole else float("nan")


def f1(true_positives: float, predicted: float, actual: float) -> tuple[float, float, float]:
    """(precision, recall, F1); 0 where nothing was predicted, or there was nothing to find.

    That is what sklearn and seqeval say with zero_division=0.
    """
    precision = true_positives / predicted if predicted else 0.0
    recall = true_positives / actual if actual else 0.0
    both = precision + recall
    return precision, recall, 2 * precision * recall / both if both else 0.0
