"""An observer on a thread of its own, for those that wait for a network or are slow to import."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from trainer.observers.base import Observer
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport

_log = logging.getLogger(__name__)
_WAITING = 10_000  # reports kept while the observer is still starting; the newest win


class Aside:
    """Makes `make()` on a daemon thread and tells it there; the caller never waits.

    `close` waits at most `close_s` seconds; what is not delivered by then is given up with a
    line in the log. Give it a Guarded maker: an error on the thread ends the thread.
    """

    def __init__(self, name: str, make: Callable[[], Observer], *, close_s: float) -> None:
        self._name = name
        self._close_s = close_s
        self._lost = 0
        self._queue: queue.Queue[Callable[[Observer], None]] = queue.Queue(maxsize=_WAITING)
        self._closing = False
        self._thread = threading.Thread(
            target=self._run, args=(make,), name=f"observer-{name}", daemon=True
        )
        self._thread.start()

    def on_step(self, report: StepReport) -> None:
        self._put(lambda inner: inner.on_step(report))

    def on_eval(self, report: EvalReport) -> None:
        self._put(lambda inner: inner.on_eval(report))

    def on_save(self, report: SaveReport) -> None:
        self._put(lambda inner: inner.on_save(report))

    def on_upload(self, report: UploadReport) -> None:
        self._put(lambda inner: inner.on_upload(report))

    def on_guard(self, report: GuardReport) -> None:
        self._put(lambda inner: inner.on_guard(report))

    def close(self) -> None:
        self._closing = True
        self._put(lambda inner: inner.close())
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            _log.warning(
                "observer %s is not done after %.0f s: %d reports given up",
                self._name,
                self._close_s,
                self._queue.qsize(),
            )
        if self._lost:
            _log.warning("observer %s was too slow: %d reports dropped", self._name, self._lost)

    def _put(self, tell: Callable[[Observer], None]) -> None:
        while True:
            try:
                self._queue.put_nowait(tell)
                return
            except queue.Full:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        try:
            self._queue.get_nowait()
            self._lost += 1
        except queue.Empty:
            pass  # the thread was quicker

    def _run(self, make: Callable[[], Observer]) -> None:
        inner = make()
        while True:
            self._queue.get()(inner)
            if self._closing and self._queue.empty():
                return
