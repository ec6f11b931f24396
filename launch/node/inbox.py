"""Signals as messages: they are read in the agent's loop, never acted on inside a handler."""

from __future__ import annotations

import os
import signal
from types import TracebackType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)


class SignalInbox:
    """Collects SIGINT and the stop signals while it is open; main thread only."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> SignalInbox:
        os.set_blocking(self.reader, False)
        os.set_blocking(self._writer, False)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGINT, *STOP_SIGNALS):
            self._before[number] = signal.signal(number, _nothing)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self.reader)
        os.close(self._writer)

    def read(self) -> list[int]:
        """Numbers of the signals that came, oldest first."""
        try:
            return list(os.read(self.reader, 4096))
        except BlockingIOError:
            return []


def _nothing(number: int, frame: object) -> None:
    """A Python handler must exist for the number to reach the wake-up pipe."""
