"""Starting processes that cannot outlive us, and ending whole families of them.

A family is known by two marks, because either alone can be lost: the session of its first process
(a child may start a session of its own), and a variable in its environment (a child may overwrite
that memory, as `setproctitle` does).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FAMILY = "LONGHAUL_FAMILY"  # names the attempt in the environment of everything it started
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Family:
    """All processes of one attempt on this machine."""

    tag: str
    sessions: frozenset[int]
    spared: frozenset[int] = frozenset()

    def members(self) -> list[int]:
        """Pids that are alive (zombies are not), never our own and never `spared`."""
        found = []
        needle = f"{FAMILY}={self.tag}".encode()
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or int(entry.name) in (os.getpid(), *self.spared):
                continue
            state, session = _state_and_session(int(entry.name))
            if state in ("Z", "X", ""):
                continue
            if session in self.sessions or _has_variable(int(entry.name), needle):
                found.append(int(entry.name))
        return found

    def signal(self, *signals: int) -> None:
        for pid in self.members():
            for one in signals:
                send(pid, one)

    def end(self, *, patience_s: float) -> list[int]:
        """SIGCONT and SIGTERM, then SIGKILL after `patience_s`; pids that survived even that."""
        if not self.members():
            return []
        if patience_s > 0:
            self.signal(signal.SIGCONT, signal.SIGTERM)  # CONT first: a stopped process can't die
            if _until(lambda: not self.members(), patience_s):
                return []
        for _ in range(50):  # again and again: a fork between listing and killing is not missed
            self.signal(signal.SIGKILL)
            if _until(lambda: not self.members(), 0.1):
                return []
        return self.members()


def send(pid: int, number: int) -> bool:
    """Signal one process; False if it is gone."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def start(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdout: int,
    stderr: int,
    own_session: bool = True,
    kept: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own that the kernel kills when this thread ends.

    `kept`: descriptors that it inherits, under the same numbers.
    """
    return subprocess.Popen(
        list(argv),
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=own_session,
        pass_fds=tuple(kept),
        umask=0o077,  # what ranks write is their owner's alone, whatever vendor writes it
        preexec_fn=die_with_parent(),
    )


def die_with_parent() -> Callable[[], None]:
    """For `preexec_fn`: SIGKILL when the parent goes, also when it went before we asked."""
    parent = os.getpid()

    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _state_and_session(pid: int) -> tuple[str, int]:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "", -1
    fields = stat.rpartition(")")[2].split()
    return fields[0], int(fields[3])


def _has_variable(pid: int, needle: bytes) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # gone, or another user's
        return False
    return needle in environment.split(b"\0")


def alive(pids: Collection[int]) -> list[int]:
    return [pid for pid in pids if _state_and_session(pid)[0] not in ("Z", "X", "")]
