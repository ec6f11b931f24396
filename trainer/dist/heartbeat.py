"""A rank's sign of life: which phase of which step it is in, and since when.

Written to a page of shared memory at phase boundaries (about a microsecond), read from outside
the rank by a process that has no part in its collectives (launch/watch/watching.py).
"""

from __future__ import annotations

import faulthandler
import mmap
import os
import signal
import time
from typing import Protocol

from trainer.errors import WorldError
from trainer.records.pulse import (
    ENVIRONMENT,
    FIRST,
    HEAD,
    LOOP,
    PAGE_BYTES,
    PHASES,
    ROW,
    ROW_NAMES,
    ROWS_AT,
    WORK,
    WORKED,
    WORKED_AT,
    WORKED_STEPS,
    Phase,
)

# SIGUSR1, SIGUSR2 and SIGTERM mean stop; libraries that use real-time signals use the first ones.
STACKS = signal.SIGRTMIN + 9

_INDEX = {phase: at for at, phase in enumerate(PHASES)}
_WORK = frozenset(_INDEX[phase] for phase in WORK)
_LOOP = frozenset(_INDEX[phase] for phase in LOOP)
_FORWARD, _AGREE = _INDEX["forward"], _INDEX["agree"]


class Pulse(Protocol):
    def beat(self, phase: Phase, step: int) -> None:
        """The rank enters `phase` of `step`."""


class NoPulse:
    """Nobody watches."""

    def beat(self, phase: Phase, step: int) -> None:
        return


class PagePulse:
    """Writes `page`, at least PAGE_BYTES long. One a process, beaten by its main thread."""

    def __init__(self, page: mmap.mmap | bytearray, *, stacks_signal: int = 0) -> None:
        self._page = page
        self._signal = stacks_signal
        self._pid = os.getpid()
        self._beats = self._phase = self._row = 0
        self._since = time.monotonic_ns()
        self._first_step = self._work = 0
        self._rows = [[0, 0, 0] for _ in ROW_NAMES]
        page[:PAGE_BYTES] = bytes(PAGE_BYTES)
        self._write(0)

    def beat(self, phase: Phase, step: int) -> None:
        now, entered = time.monotonic_ns(), _INDEX[phase]
        took = now - self._since
        row = self._rows[self._row]
        row[0] += 1
        row[1] += took
        if took > row[2]:
            row[2] = took
        ROW.pack_into(self._page, ROWS_AT + self._row * 24, *row)
        if self._phase in _WORK:
            self._work += took
        if entered == _AGREE:
            at = WORKED_AT + step % WORKED_STEPS * 16
            WORKED.pack_into(self._page, at, step, self._work)
            self._work = 0
        elif entered == _FORWARD and not self._first_step:
            self._first_step = step
        self._since, self._phase = now, entered
        self._row = FIRST if step and step == self._first_step and entered in _LOOP else entered
        self._beats += 1
        self._write(step)

    def _write(self, step: int) -> None:
        """The count stands first and last: a reader sees whether all between is of one beat."""
        HEAD.pack_into(
            self._page,
            0,
            self._beats,
            self._pid,
            self._phase,
            step,
            self._since,
            self._first_step,
            self._signal,
            self._beats,
        )


def open_pulse(path: str | None = None) -> Pulse:
    """The pulse that a watcher asked for. From here on this process can say where it stands.

    Stacks are written by a C signal handler, of all threads, without the GIL: also while a thread
    holds that or is stuck in C. A crash leaves its stacks in the rank's log.
    Raises: WorldError if the page that was promised is not there.
    """
    path = path or os.environ.get(ENVIRONMENT)
    if path is None:
        return NoPulse()
    faulthandler.enable()
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)  # open for life
    except OSError as e:
        raise WorldError(
            f"cannot open {path}, by which the agent watches this rank ({e.strerror}); the ranks "
            "of an agent must run as its user and see it in /proc"
        ) from e
    faulthandler.register(STACKS, file=descriptor, all_threads=True, chain=False)
    return PagePulse(mmap.mmap(descriptor, PAGE_BYTES), stacks_signal=STACKS)
