"""Thins out steps."""

from __future__ import annotations

from trainer.observers.base import Observer
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport


class Sampled:
    """Passes on the first step it hears, every `every`-th, and the last: however the run ends."""

    def __init__(self, inner: Observer, *, every: int) -> None:
        self._inner = inner
        self._every = every
        self._heard_any = False
        self._held_back: StepReport | None = None

    def on_step(self, report: StepReport) -> None:
        if self._heard_any and report.step % self._every != 0:
            self._held_back = report
            return
        self._heard_any = True
        self._held_back = None
        self._inner.on_step(report)

    def on_eval(self, report: EvalReport) -> None:
        self._inner.on_eval(report)

    def on_save(self, report: SaveReport) -> None:
        self._inner.on_save(report)

    def on_upload(self, report: UploadReport) -> None:
        self._inner.on_upload(report)

    def on_guard(self, report: GuardReport) -> None:
        self._inner.on_guard(report)

    def close(self) -> None:
        if self._held_back is not None:
            self._inner.on_step(self._held_back)
            self._held_back = None
        self._inner.close()
