"""An observer that fails is left out; the run goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable

from trainer.observers.base import Observer
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport

_log = logging.getLogger(__name__)


class Guarded:
    """Makes an observer and passes on what it is told, until its first failure.

    That failure is logged with its traceback, then nothing more is asked of the observer.
    """

    def __init__(self, name: str, make: Callable[[], Observer]) -> None:
        self._name = name
        self._inner: Observer | None = None
        self._try(lambda: setattr(self, "_inner", make()))

    def on_step(self, report: StepReport) -> None:
        if (inner := self._inner) is not None:
            self._try(lambda: inner.on_step(report))

    def on_eval(self, report: EvalReport) -> None:
        if (inner := self._inner) is not None:
            self._try(lambda: inner.on_eval(report))

    def on_save(self, report: SaveReport) -> None:
        if (inner := self._inner) is not None:
            self._try(lambda: inner.on_save(report))

    def on_upload(self, report: UploadReport) -> None:
        if (inner := self._inner) is not None:
            self._try(lambda: inner.on_upload(report))

    def on_guard(self, report: GuardReport) -> None:
        if (inner := self._inner) is not None:
            self._try(lambda: inner.on_guard(report))

    def close(self) -> None:
        if (inner := self._inner) is not None:
            self._try(inner.close)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception:  # an observer may fail in any way; training must not
            self._inner = None
            _log.exception("observer %s failed and is left out; training goes on", self._name)
