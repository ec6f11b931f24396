"""Learning-rate schedules: pure functions step -> rate. The first step is 1.

With W warm-up steps, S steps in all and peak rate p: step s <= W has p * s / W (step W is the
peak), and later ones by kind:

constant      p
linear        p falls in a straight line to p * final_fraction at step S
cosine        p falls along half a cosine to p * final_fraction at step S
wsd           p, then linear to p * final_fraction over the last round(decay_fraction * S) steps
inverse_sqrt  p * sqrt(max(W, 1) / s)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from trainer.config.sections.training import Constant, Cosine, InverseSqrt, Linear, Wsd

AnySchedule = Constant | Linear | Cosine | Wsd | InverseSqrt


def learning_rate(
    section: AnySchedule, peak: float, *, total_steps: int, tokens_per_step: int
) -> Callable[[int], float]:
    """The rate of every step. Steps after `total_steps` keep its rate (except inverse_sqrt).

    Source: wsd: Hu et al. 2024, MiniCPM, sec. 4; inverse_sqrt: Vaswani et al. 2017, eq. 3.
    """
    warmup = warmup_steps(section, tokens_per_step=tokens_per_step)
    after = _after_warmup(section, warmup=warmup, total=total_steps)

    def rate(step: int) -> float:
        return peak * (step / warmup if step < warmup else after(step))

    return rate


def warmup_steps(section: AnySchedule, *, tokens_per_step: int) -> int:
    """Warm-up in steps; tokens are rounded up to whole steps."""
    return section.warmup_steps or -(-section.warmup_tokens // tokens_per_step)


def _after_warmup(section: AnySchedule, *, warmup: int, total: int) -> Callable[[int], float]:
    if isinstance(section, InverseSqrt):
        return lambda step: math.sqrt(max(warmup, 1) / step)
    if isinstance(section, Constant):
        return lambda step: 1.0
    start = warmup
    if isinstance(section, Wsd):
        start = max(warmup, total - round(section.decay_fraction * total))
    final, length = section.final_fraction, max(total - start, 1)
    cosine = isinstance(section, Cosine)

    def factor(step: int) -> float:
        progress = min(max((step - start) / length, 0.0), 1.0)
        left = (1.0 + math.cos(math.pi * progress)) / 2.0 if cosine else 1.0 - progress
        return final + (1.0 - final) * left

    return factor
