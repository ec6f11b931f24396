"""Is a step's loss or gradient norm one that training should be given? A pure function of both.

A value is compared with the median of those ACCEPTED before it, in units of their median absolute
deviation: neither is moved by what was refused, so that a NaN or a spike of 30 cannot hide the next
one. Both numbers are the whole world's, hence every rank comes to the same answer by itself.

Sources: OLMo 2 (arXiv 2501.00656) skips steps 6 standard deviations above the mean of 128; here
median and deviation are robust, the scale is 1.4826 MAD (Rousseeuw and Croux 1993).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

Kind = Literal["non_finite", "spike"]

_MAD_TO_SIGMA = 1.4826
# Below these no deviation counts as noise: a loss that hardly moves would make spikes of nothing.
_LEAST_OF_LOSS = 0.01  # of the median
_LEAST_OF_NORM = 0.1  # of its logarithm: ten per cent


@dataclass(frozen=True)
class Anomaly:
    """`said`: what is wrong with the numbers, for a person."""

    kind: Kind
    said: str


@dataclass(frozen=True)
class Numbers:
    """Of one step, all ranks."""

    loss: float
    grad_norm: float

    @property
    def is_finite(self) -> bool:
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)

    @property
    def log_norm(self) -> float:
        """Norms vary by factors, and so do their spikes."""
        return math.log(max(self.grad_norm, 1e-30))


@dataclass(frozen=True)
class Accepted:
    """The last accepted values, oldest first."""

    losses: tuple[float, ...] = ()
    log_norms: tuple[float, ...] = ()

    def and_(self, numbers: Numbers, *, window: int) -> Accepted:
        return Accepted(
            (*self.losses, numbers.loss)[-window:], (*self.log_norms, numbers.log_norm)[-window:]
        )


def judge(numbers: Numbers, accepted: Accepted, *, sigmas: float, fewest: int) -> Anomaly | None:
    """`fewest`: accepted values below which nothing is called a spike."""
    if not numbers.is_finite:
        said = f"loss {numbers.loss:.6g}, gradient norm {numbers.grad_norm:.6g}: not finite"
        return Anomaly("non_finite", said)
    if len(accepted.losses) < fewest:
        return None
    center, away = _away(numbers.loss, accepted.losses, least=_LEAST_OF_LOSS, relative=True)
    if away > sigmas:
        return Anomaly("spike", f"loss {numbers.loss:.4f}, {away:.0f} sigmas above {center:.4f}")
    center, away = _away(numbers.log_norm, accepted.log_norms, least=_LEAST_OF_NORM)
    if away > sigmas:
        said = f"gradient norm {numbers.grad_norm:.4g}, {away:.0f} sigmas above"
        return Anomaly("spike", f"{said} {math.exp(center):.4g}")
    return None


def _away(
    value: float, window: Sequence[float], *, least: float, relative: bool = False
) -> tuple[float, float]:
    """The window's median, and by how many robust sigmas the value is above it."""
    center = median(window)
    spread = _MAD_TO_SIGMA * median(abs(v - center) for v in window)
    floor = least * abs(center) if relative else least
    return center, (value - center) / max(spread, floor, 1e-12)
