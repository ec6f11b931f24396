"""Signals set a flag; the loop acts on it at the next step, on all ranks alike.

Imports nothing heavy: handlers must stand before torch is imported, which takes seconds.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from pathlib import Path

from trainer.errors import Exit
from trainer.records.attempt import PAUSE, Stop, StopCause, write_record

_STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class StopSignals:
    """A flag that SIGTERM, SIGUSR1, SIGUSR2 and SIGINT raise; a second SIGINT ends the process.

    Python runs signal handlers between bytecodes of the main thread, so not while that waits in a
    collective. The C-level handler writes the signal's number to a socket at once, though, and a
    thread reads it there. One instance a process, made on the main thread.
    """

    def __init__(self) -> None:
        self._told: list[signal.Signals] = []
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        for number in _STOP:
            signal.signal(number, _nothing)
            # Interrupted system calls go on: not all C code below torch expects EINTR.
            signal.siginterrupt(number, False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="stop-signals", daemon=True).start()

    def is_set(self) -> bool:
        return bool(self._told)

    def record(self, path: Path, *, paused: bool = False) -> None:
        """Say who asked, unless that is known: `longhaul` writes stop.json before it signals.

        `paused`: its settings did (steps.pause_at), so that nobody but a user starts it again.
        """
        if path.exists():
            return
        if paused:
            write_record(path, Stop("user", time.time(), PAUSE))
        elif self._told:
            number = self._told[0]
            cause: StopCause = "interrupt" if number == signal.SIGINT else "scheduler"
            write_record(path, Stop(cause, time.time(), f"{number.name} to a rank"))

    def _listen(self) -> None:
        while data := self._reader.recv(64):
            for number in data:
                if number not in _STOP:
                    continue
                self._told.append(signal.Signals(number))
                if self._told.count(signal.SIGINT) > 1:
                    os._exit(Exit.INTERRUPTED)


def _nothing(number: int, frame: object) -> None:
    """Python must own the signal for its number to reach the wake-up socket."""
