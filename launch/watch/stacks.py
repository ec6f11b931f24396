"""The stacks of all threads of hung ranks, taken without their help: no GIL, no Python, no locks.

A rank's C-level signal handler appends them to its page of shared memory (records/pulse.py); we
copy them to the attempt's folder. Standard library only.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.node.processes import send
from launch.watch.culprit import STOPPED, Witness
from trainer.records.pulse import PAGE_BYTES

_PATIENCE_S = 1.0  # for a handler that takes milliseconds, on a machine that is busy
_IN_COLLECTIVE = ("/torch/distributed/", "/deepspeed/comm/")
_VENDORS = ("/torch/", "/deepspeed/")
_FRAME = '  File "'


@dataclass(frozen=True)
class Page:
    """One rank's page. `signal` 0: the process has no handler yet, and a signal would end it."""

    descriptor: int
    pid: int
    signal: int


def dump_stacks(
    pages: Mapping[int, Page],
    folder: Path,
    *,
    about: Mapping[int, str] | None = None,
    patience_s: float = _PATIENCE_S,
) -> dict[int, Witness]:
    """Write `folder`/rank-00003.txt for every rank and say what each process showed.

    A stopped process is continued for the moment that this takes; it shows where it was stopped.
    `about`: a line of each rank for the head of its file.
    """
    states = {rank: process_state(page.pid) for rank, page in pages.items()}
    starts = {rank: os.fstat(page.descriptor).st_size for rank, page in pages.items()}
    can_tell = {rank: page for rank, page in pages.items() if page.signal and states[rank]}
    stopped = {rank for rank in can_tell if states[rank] in STOPPED}
    asked = {r: page for r, page in can_tell.items() if r not in stopped}
    asked = {r: page for r, page in asked.items() if send(page.pid, page.signal)}
    _until_quiet(asked, starts, patience_s)
    for rank in stopped:
        _ask_stopped(can_tell[rank], starts[rank], patience_s)
    seen = {}
    for rank, page in pages.items():
        text = _read_from(page.descriptor, max(starts[rank], PAGE_BYTES))
        seen[rank] = witness(states[rank], text)
        head = f"rank {rank}, process {page.pid}, state {states[rank] or 'gone'}"
        head += f", {about[rank]}\n\n" if about and rank in about else "\n\n"
        _keep(folder / f"rank-{rank:05d}.txt", head + (text or "no stacks: it did not answer\n"))
    return seen


def witness(state: str, text: str) -> Witness:
    """Read what faulthandler wrote; the main thread is the one it names last."""
    threads = _threads(text)
    if not threads:
        return Witness(state, waits=None, text=text)
    main = threads[-1]
    # The threads of autograd run the hooks that reduce gradients while the main one waits for them.
    inside = main and main[0].function == "_engine_run_backward"
    judged = threads if inside else [main]
    waits = any(_in_collective(frames[0]) for frames in judged if frames)
    return Witness(state, waits=waits, frames=tuple(map(str, main)), text=text)


@dataclass(frozen=True)
class Frame:
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.function} ({'/'.join(Path(self.file).parts[-2:])}:{self.line})"


def _threads(text: str) -> list[list[Frame]]:
    threads: list[list[Frame]] = []
    for line in text.splitlines():
        if line.startswith(("Thread 0x", "Current thread 0x")):
            threads.append([])
        elif line.startswith(_FRAME) and threads:
            file, _, rest = line[len(_FRAME) :].rpartition('", line ')
            number, _, function = rest.partition(" in ")
            threads[-1].append(Frame(file, int(number) if number.isdigit() else 0, function))
    return threads


def _in_collective(frame: Frame) -> bool:
    if any(part in frame.file for part in _IN_COLLECTIVE):
        return True
    vendor = any(part in frame.file for part in _VENDORS)
    return vendor and ".wait(" in linecache.getline(frame.file, frame.line)


def process_state(pid: int) -> str:
    """A letter as in `ps`; empty if there is no such process, or only what is left of one."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    state = stat.rpartition(")")[2].split()[0]
    return "" if state in ("Z", "X") else state


def _ask_stopped(page: Page, start: int, patience_s: float) -> None:
    """The signal first: the process gets it the moment it is continued, where it stands."""
    send(page.pid, page.signal)
    send(page.pid, signal.SIGCONT)
    _until_quiet({0: page}, {0: start}, patience_s, every_s=0.002)
    send(page.pid, signal.SIGSTOP)  # an attempt that is given up shall not go on


def _until_quiet(
    pages: Mapping[int, Page],
    starts: Mapping[int, int],
    patience_s: float,
    *,
    every_s: float = 0.02,
) -> None:
    """Until every rank has written and stopped writing."""
    deadline = time.monotonic() + patience_s
    last: dict[int, int] = {}
    while pages and time.monotonic() < deadline:
        time.sleep(every_s)
        sizes = {rank: os.fstat(page.descriptor).st_size for rank, page in pages.items()}
        if sizes == last and all(sizes[rank] > starts[rank] for rank in pages):
            return
        last = sizes


def _read_from(descriptor: int, start: int) -> str:
    parts = []
    while part := os.pread(descriptor, 1 << 16, start):
        parts.append(part)
        start += len(part)
    return b"".join(parts).decode("utf-8", errors="replace")


def _keep(path: Path, text: str) -> None:
    """A disk that refuses it is no reason to leave hung ranks alone."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
