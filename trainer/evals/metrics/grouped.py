"""One metric for each group of examples: by length, by source, by whom they speak of."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.errors import DataError
from trainer.evals.metrics.base import Metric, Sums


@dataclass(frozen=True)
class In:
    """What was predicted for an example (or batch) of one group."""

    group: str
    predicted: Any


@dataclass(frozen=True)
class Grouped:
    """Sums: for each group, how often it was added to and the metric's own sums."""

    metric: Metric
    groups: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.groups) * (1 + self.metric.size)

    def sums_of(self, predicted: In, reference: Any) -> Sums:
        """Raises: DataError for a group that was not declared."""
        if predicted.group not in self.groups:
            raise DataError(f"the group {predicted.group!r} is none of {', '.join(self.groups)}")
        sums = np.zeros((len(self.groups), 1 + self.metric.size))
        own = self.metric.sums_of(predicted.predicted, reference)
        sums[self.groups.index(predicted.group)] = [1.0, *own]
        return sums.ravel()

    def table(self, sums: Sums) -> dict[str, dict[str, float]]:
        """By group, in the order declared; without those that nothing was added to."""
        blocks = zip(self.groups, sums.reshape(len(self.groups), -1), strict=True)
        return {group: self.metric.value(own[1:]) for group, own in blocks if own[0]}

    def value(self, sums: Sums) -> dict[str, float]:
        """ "GROUP/score" for each, and "gap/score": the distance between the best and the worst."""
        table = self.table(sums)
        values = {f"{g}/{name}": v for g, scores in table.items() for name, v in scores.items()}
        for name in dict.fromkeys(name for scores in table.values() for name in scores):
            each = [scores[name] for scores in table.values() if name in scores]
            known = [score for score in each if not math.isnan(score)]
            if known:
                values[f"gap/{name}"] = max(known) - min(known)
        return values


def length_groups(edges: Sequence[int]) -> tuple[str, ...]:
    """Names of buckets: edges 64 and 256 make "1-63", "64-255" and "256+"."""
    starts = [1, *edges]
    closed = (f"{low}-{high - 1}" for low, high in zip(starts, edges, strict=False))
    return (*closed, f"{starts[-1]}+")


def length_group(length: int, edges: Sequence[int]) -> str:
    """The bucket that a length falls into; edges ascend, and each begins a bucket."""
    return length_groups(edges)[bisect_right(edges, length)]
