"""Which source a global sample index reads from: exact shares, evenly interleaved, O(1), pure.

A period of P samples holds `counts[s]` of source s; sample g is slot g mod P of period g div P.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from trainer.data.order import Indices

MAX_PERIOD = 2**16  # shares that need a longer period are rounded to 1/65536


@dataclass(frozen=True, eq=False)
class Mixture:
    """Shapes: S sources, P slots of a period."""

    counts_S: Indices  # samples of each source in a period
    slot_source_P: Indices
    slot_rank_P: Indices  # how many samples of the same source stand before in the period

    @property
    def period(self) -> int:
        return len(self.slot_source_P)

    def locate(self, index: Indices) -> tuple[Indices, Indices]:
        """(source, how many samples of that source came before) of each global sample index."""
        if len(self.counts_S) == 1:
            return np.zeros_like(index), index
        periods, slots = np.divmod(index, self.period)
        source = self.slot_source_P[slots]
        return source, periods * self.counts_S[source] + self.slot_rank_P[slots]


def mixture(weights: Sequence[float]) -> Mixture:
    """The mixture with these relative weights (all > 0)."""
    counts = apportioned(weights, total=_period(weights))
    # sample k of n stands at (k + 1/2) / n of the period: every prefix is as even as it can be
    slots = sorted(
        ((2 * k + 1) / (2 * n), source, k) for source, n in enumerate(counts) for k in range(n)
    )
    return Mixture(
        counts_S=np.array(counts, dtype=np.int64),
        slot_source_P=np.array([source for _, source, _ in slots], dtype=np.int64),
        slot_rank_P=np.array([k for _, _, k in slots], dtype=np.int64),
    )


def apportioned(weights: Sequence[float], *, total: int) -> list[int]:
    """`total` split by weight, at least one each, by largest remainder; ties to the first.

    Source: Balinski and Young 1982, Fair Representation, ch. 2 (Hamilton's method).
    """
    shares = _shares(weights)
    exact = [share * total for share in shares]
    counts = [max(1, math.floor(quota)) for quota in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: max(0, total - sum(counts))]:
        counts[i] += 1
    while sum(counts) > total and max(counts) > 1:  # the at-least-one rule took too many
        counts[counts.index(max(counts))] -= 1
    return counts


def _shares(weights: Sequence[float]) -> list[Fraction]:
    # 0.1 is meant as 1/10, not as the nearest binary fraction
    parts = [Fraction(w).limit_denominator(10_000) or Fraction(w) for w in weights]
    return [part / sum(parts) for part in parts]


def _period(weights: Sequence[float]) -> int:
    exact = math.lcm(*(share.denominator for share in _shares(weights)))
    return exact if exact <= MAX_PERIOD else MAX_PERIOD
