"""The agent's shadow: ends the ranks' families when the agent dies without a word.

PR_SET_PDEATHSIG takes the ranks themselves when the agent is SIGKILLed, but not their children
(data workers, loggers). The shadow is a fork of the agent that waits on a pipe; the kernel closes
the other end when the agent is gone, however it went. Then it removes the ranks' folder for
temporary files too: ranks leave without tidying up, and vendors keep folders of their own there.
"""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

from launch.node.processes import Family

_ALL_IS_WELL = b"end\n"


@dataclass(frozen=True)
class Guard:
    pid: int
    pipe: int

    def watch(self, session: int) -> None:
        self._tell(f"{session}\n".encode())

    def dismiss(self) -> None:
        """The agent has ended everything itself; the shadow leaves."""
        self._tell(_ALL_IS_WELL)
        os.close(self.pipe)
        os.waitpid(self.pid, 0)

    def _tell(self, line: bytes) -> None:
        try:
            os.write(self.pipe, line)
        except BrokenPipeError:
            return  # somebody killed the shadow: only the case it is for is no longer covered


def start_guard(tag: str, *, scratch: Path) -> Guard:
    """Fork the shadow. Call it before threads exist and before any rank is started.

    `scratch`: a folder that goes with the agent.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        _shadow(tag, read_end, write_end, scratch)
    os.close(read_end)
    return Guard(pid=pid, pipe=write_end)


def _shadow(tag: str, read_end: int, write_end: int, scratch: Path) -> None:
    """Never returns. Survives the terminal and every signal meant for the agent's group."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        os.close(write_end)
        # Terminals and pipes of the agent must not be held open by its shadow.
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.closerange(3, read_end)
        os.closerange(read_end + 1, 4096)
        told = _read_all(read_end)
        if not told.endswith(_ALL_IS_WELL):
            sessions = frozenset(int(line) for line in told.split() if line.isdigit())
            Family(tag=tag, sessions=sessions).end(patience_s=0.0)
        shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os._exit(0)


def _read_all(descriptor: int) -> bytes:
    parts = []
    while part := os.read(descriptor, 4096):
        parts.append(part)
    return b"".join(parts)
