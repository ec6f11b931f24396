"""pass@k: would one of k programs drawn for a problem pass its tests?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums, ratio


@dataclass(frozen=True)
class PassAtK:
    """The mean over problems. Sums: problems, and for each k the estimates added up."""

    ks: tuple[int, ...] = (1,)

    @property
    def size(self) -> int:
        return 1 + len(self.ks)

    def sums_of(self, predicted: Sequence[bool], reference: object = None) -> Sums:
        """One problem: which of its programs passed (the tests are part of them: no reference).

        Raises: Refused for fewer programs than the largest k.
        """
        total, passed = len(predicted), sum(map(bool, predicted))
        return np.array([1.0, *(pass_at_k(total, passed, k) for k in self.ks)])

    def value(self, sums: Sums) -> dict[str, float]:
        problems, *estimates = map(float, sums)
        return {
            f"pass@{k}": ratio(one, problems) for k, one in zip(self.ks, estimates, strict=True)
        }


def pass_at_k(total: int, passed: int, k: int) -> float:
    """The chance that k of `total` programs, drawn without putting back, hold one that passes.

    Unbiased, unlike 1 - (1 - passed / total)^k.
    Source: Chen et al. 2021 (HumanEval), sec. 2.1, eq. 1.
    Raises: Refused for fewer programs than k.
    """
    if total < k:
        raise Refused(f"pass@{k} needs {k} programs for each problem, but one has {total}")
    return 1.0 - math.comb(total - passed, k) / math.comb(total, k)
