"""Seconds of a step by phase, and what they say about speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from trainer.dist.device import Peak
from trainer.engine.base import StepStats
from trainer.reports import StepReport


class Clock:
    """Seconds of one step by phase, as the host sees them."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.data_s = self.forward_s = self.backward_s = self.update_s = 0.0

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


@dataclass(frozen=True, kw_only=True)
class Meter:
    """The constants that turn seconds into rates."""

    flops_per_token: float
    peak: Peak  # of one rank; 0 FLOP/s where it is not known
    row_tokens_per_step: int
    memory_bytes: Callable[[], int]
    world_size: int

    def report(
        self,
        step: int,
        *,
        loss: float,
        learning_rate: float,
        stats: StepStats,
        terms: float,
        tokens: float,
        tokens_before: int,
        skipped: int,
        clock: Clock,
    ) -> StepReport:
        """`terms`, `tokens`: of the step, all ranks; `tokens_before`: seen until this step."""
        step_s = time.perf_counter() - clock.started
        rate = tokens / step_s
        peak = self.peak.flops * self.world_size
        return StepReport(
            step=step,
            loss=loss,
            learning_rate=learning_rate,
            grad_norm=stats.grad_norm,
            applied=stats.applied,
            terms=int(terms),
            tokens=int(tokens),
            row_tokens=self.row_tokens_per_step,
            tokens_seen=tokens_before + int(tokens),
            step_s=step_s,
            data_s=clock.data_s,
            forward_s=clock.forward_s,
            backward_s=clock.backward_s,
            update_s=clock.update_s,
            tokens_per_second=rate,
            mfu=self.flops_per_token * rate / peak if peak else 0.0,
            memory_bytes=self.memory_bytes(),
            skipped=skipped,
        )
