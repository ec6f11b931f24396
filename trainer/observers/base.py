"""What an observer is."""

from __future__ import annotations

from typing import Protocol

from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport


class Observer(Protocol):
    """Told what happened; cannot change it. Runs on rank 0 only and calls no collectives."""

    def on_step(self, report: StepReport) -> None: ...
    def on_eval(self, report: EvalReport) -> None: ...
    def on_save(self, report: SaveReport) -> None: ...
    def on_guard(self, report: GuardReport) -> None: ...
    def close(self) -> None: ...
