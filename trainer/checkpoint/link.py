"""A rank's line to whoever writes its checkpoints: gives an order, asks, hears how it went.

`ProcessLink` is the real one; `DirectLink` does the work at once in this process, so that tests can
drive every order of a background save over a disk of their own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import trainer
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.orders import Order, encode_order, encode_table
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.wire import receive, said_of, send, value_of
from trainer.checkpoint.writer_process import SIGNALS, Writer
from trainer.records.fragment import Fragment

_SEND_S = 10.0  # a writer that waits for orders takes one at once
_CLOSE_S = 2.0
_REAP_S = 0.2
_DIES_S = 10.0  # from the end of its line to its own, on a busy machine; milliseconds elsewhere
_START_S = 60.0  # Python from a shared disk, with thousands of others
_HURRIED_START_S = 10.0


class Link(Protocol):
    """One order at a time; an order that shows no sign of progress for too long has failed."""

    def ready(self, staging: Staging) -> None:
        """Start what can be started before the first order; `staging` may have new buffers."""

    def give(self, order: Order, *, table: Sequence[Fragment] | None = None) -> None:
        """Never raises: what went wrong is the order's `result`. `table`: the fragments to write,
        the same object as long as they are the same.
        """

    def ended(self) -> bool:
        """Whether the order has ended, well or not. Cheap."""

    def wait(self, seconds: float) -> None:
        """Until the order has ended, but not longer."""

    def result(self) -> dict[str, Any]:
        """Of an order that ended. Raises: SaveFailed, Superseded."""

    def hurry(self, most_s: float | None) -> None:
        """Wait no longer than this for a sign of progress from here on; None: as usual."""

    def close(self) -> None: ...


class DirectLink:
    """No process, nothing asynchronous: every order is done when it is given."""

    def __init__(self, folders: StepFolders) -> None:
        self._folders = folders
        self._writer: Writer | None = None
        self._table: Sequence[Fragment] | None = None
        self._said: dict[str, Any] = {}

    def ready(self, staging: Staging) -> None:
        buffers = [staging.bytes_of(i) for i in range(len(staging.descriptors))]
        self._writer, self._table = Writer(self._folders, buffers), None

    def give(self, order: Order, *, table: Sequence[Fragment] | None = None) -> None:
        assert self._writer is not None
        writer, message = self._writer, encode_order(order)
        if table is not None and table is not self._table:
            message["table"], self._table = encode_table(table), table
        self._said = said_of(lambda: writer.do(message))

    def ended(self) -> bool:
        return True

    def wait(self, seconds: float) -> None:
        return

    def result(self) -> dict[str, Any]:
        return value_of(self._said)

    def hurry(self, most_s: float | None) -> None:
        return

    def close(self) -> None:
        return


class ProcessLink:
    """A writer process, started when it is needed and again after it died."""

    def __init__(self, root: Path, *, rank: int, patience_s: float, drills: bool = False) -> None:
        self._usual_s = patience_s
        self._most_s: float | None = None
        self._root = root
        self._rank = rank
        self._drills = drills
        self._buffers: tuple[int, ...] = ()
        self._process: _Process | None = None
        self._given_up: list[_Process] = []  # killed; one that hangs in the kernel dies later
        self._table: Sequence[Fragment] | None = None  # what the process knows
        self._said: dict[str, Any] | None = {}

    def ready(self, staging: Staging) -> None:
        if staging.descriptors != self._buffers or self._process is None:
            self.close()
            self._buffers = staging.descriptors
        with contextlib.suppress(OSError):  # told by the first order
            self._started()

    def give(self, order: Order, *, table: Sequence[Fragment] | None = None) -> None:
        self._said = None
        try:
            self._send(order, table)
        except OSError as e:
            self._lost(f"the writer process takes no orders ({e})")

    def ended(self) -> bool:
        if self._said is None and self._process is not None:
            process = self._process
            if process.listen(0.0):
                self._said = process.hear()
                if self._said is None:
                    self._lost(f"the writer process {process.died()}")
            elif why := process.is_stuck(*self._patience()):
                self._lost(why)
        return self._said is not None

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.ended() and self._process is not None:
            left = until - time.monotonic()
            if left <= 0:
                return
            self._process.listen(min(left, 0.1))

    def result(self) -> dict[str, Any]:
        return value_of(self._said or {"error": "asked too early"})

    def hurry(self, most_s: float | None) -> None:
        self._most_s = most_s

    def _patience(self) -> tuple[float, float]:
        """Seconds without a sign of progress, and for a process to start."""
        if self._most_s is None:
            return self._usual_s, max(_START_S, self._usual_s)
        return min(self._usual_s, self._most_s), max(_HURRIED_START_S, self._most_s)

    def close(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end(_CLOSE_S)
        for given_up in self._given_up:
            given_up.end(0.0)
        self._given_up.clear()

    def _send(self, order: Order, table: Sequence[Fragment] | None) -> None:
        process = self._started()
        message = encode_order(order)
        if table is not None and table is not self._table:
            message["table"] = encode_table(table)
        process.order(message)
        self._table = table if table is not None else self._table

    def _started(self) -> _Process:
        if self._process is None or self._process.is_gone():
            self._table = None
            self._process = _Process(self._root, self._rank, self._buffers, self._drills)
        return self._process

    def _lost(self, why: str) -> None:
        """The order failed, and with it the process: the next order starts another one."""
        self._said = {"error": why}
        process, self._process = self._process, None
        if process is not None:
            process.end(0.0)
            self._given_up.append(process)


class _Process:
    """One started writer process."""

    def __init__(self, root: Path, rank: int, buffers: Sequence[int], drills: bool) -> None:
        self._link, theirs = socket.socketpair()
        self._link.settimeout(_SEND_S)
        counter = os.memfd_create("longhaul-writer", os.MFD_CLOEXEC)
        os.ftruncate(counter, mmap.PAGESIZE)
        self._counter = np.frombuffer(mmap.mmap(counter, mmap.PAGESIZE), np.uint64)
        arguments: dict[str, Sequence[object]] = {
            "--root": [root],
            "--socket": [theirs.fileno()],
            "--counter": [counter],
            "--buffers": buffers,
            "--rank": [rank],
            "--parent": [os.getpid()],
            **({"--drills": []} if drills else {}),
        }
        words = [f"{word}" for key, values in arguments.items() for word in (key, *values)]
        # A stop signal for the whole group must not end it before it ignores them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-m", "trainer.checkpoint.writer_process", *words],
                pass_fds=(theirs.fileno(), counter, *buffers),
                stdin=subprocess.DEVNULL,
                env=child_environment(),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
            os.close(counter)
        self._began = self._moved = time.monotonic()
        self._count = -1

    def order(self, message: dict[str, Any]) -> None:
        send(self._link, message)
        self._began = self._moved = time.monotonic()

    def listen(self, seconds: float) -> bool:
        """Wait for a word; whether there is one. (poll, for select knows 1,024 descriptors.)"""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        return bool(poll.poll(seconds * 1000))

    def hear(self) -> dict[str, Any] | None:
        try:
            return receive(self._link)
        except OSError:
            return None

    def is_stuck(self, patience_s: float, start_s: float) -> str:
        """Why it is taken for stuck; "" while it is not. A process that starts gets more time."""
        count, now = int(self._counter[0]), time.monotonic()
        if count != self._count:
            self._count, self._moved = count, now
        still_s, age_s = now - self._moved, now - self._began
        if count == 0:
            late = still_s > start_s
            return f"the writer process had not started after {still_s:.0f} s" if late else ""
        if still_s <= patience_s:
            return ""
        return (
            f"the writer process did nothing for {still_s:.1f} s, {age_s:.1f} s into its order: "
            "the disk is stuck; given up"
        )

    def is_gone(self) -> bool:
        return self._popen.poll() is not None

    def died(self) -> str:
        try:
            code = self._popen.wait(_DIES_S)
        except subprocess.TimeoutExpired:
            return "closed its line"
        return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def end(self, seconds: float) -> None:
        """Ask it to end, then kill it. Does not wait for one that hangs in the kernel."""
        self._link.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            if seconds:
                self._popen.wait(seconds)
        if self._popen.poll() is None:
            self._popen.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_REAP_S)


def child_environment() -> dict[str, str]:
    """This process's, able to find this very package, and with no thread pools in numpy."""
    package = str(Path(trainer.__path__[0]).parent)
    others = os.environ.get("PYTHONPATH", "")
    paths = os.pathsep.join(p for p in (package, others) if p)
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **one, "PYTHONPATH": paths}
