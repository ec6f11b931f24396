"""The agent's side of trainer/standby.py: ranks that need no imports."""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node.processes import start
from launch.node.ranks import LISTENER, Child, FreshStart

MODULE = "trainer.standby"
READY_S = 120.0  # 5 s on a quiet machine; after this the ranks import for themselves
_ANSWER_S = 10.0
_PR_SET_CHILD_SUBREAPER = 36
_PADDING = "." * 512  # room for the command line of a rank
_LIBC = ctypes.CDLL(None, use_errno=True)


class NotWarm(Exception):
    """The standby cannot be used. Its text says why."""


@dataclass(frozen=True)
class Forked:
    """A rank that the standby forked and this process adopted."""

    pid: int

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@dataclass
class Standby:
    """One process of trainer/standby.py."""

    process: subprocess.Popen[bytes]
    channel: socket.socket
    is_ready: bool = False

    @classmethod
    def begin(
        cls, settings: Mapping[str, Any], *, env: Mapping[str, str], log: Path, quiet: bool
    ) -> Standby:
        """`settings`: config and device. `quiet`: import at the lowest priority."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        argv = [sys.executable, "-m", MODULE, str(theirs.fileno())]
        argv += [*(["--quiet"] if quiet else []), _PADDING]
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with theirs:
            kept = (theirs.fileno(),)
            process = start(argv, env=env, stdout=output, stderr=output, kept=kept)
        os.close(output)
        ours.send(json.dumps(settings).encode())
        return cls(process, ours)

    def wait(self, seconds: float, *, until: int | None = None) -> bool:
        """Whether it is ready; gives up when descriptor `until` has something to read."""
        if self.is_ready:
            return True
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        if until is not None:
            poll.register(until, select.POLLIN)
        found = dict(poll.poll(seconds * 1000))
        if self.channel.fileno() not in found or (until is not None and until in found):
            return False
        self.is_ready = "ready" in self._heard(0.0)
        return self.is_ready

    def has_spoken(self) -> bool:
        """Whether it is ready, or gone."""
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        return self.is_ready or bool(poll.poll(0))

    def fork(
        self, argv: Sequence[str], *, env: Mapping[str, str], descriptors: Sequence[int]
    ) -> Forked:
        """Raises: NotWarm, OSError; no rank was made then."""
        request = {
            "argv": list(argv),
            "env": dict(env),
            "cwd": str(Path.cwd()),
            "agent": os.getpid(),
            "listener": LISTENER if len(descriptors) > 2 else "",
        }
        socket.send_fds(self.channel, [json.dumps(request).encode()], list(descriptors))
        answer = self._heard(_ANSWER_S)
        if "pid" not in answer:
            raise NotWarm(str(answer.get("error", "it said nothing")))
        return Forked(int(answer["pid"]))

    def _heard(self, seconds: float) -> dict[str, Any]:
        poll = select.poll()
        poll.register(self.channel, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return {}
        data = self.channel.recv(1 << 16)
        value: dict[str, Any] = json.loads(data) if data else {}
        return value

    def end(self) -> None:
        self.channel.close()
        self.process.kill()
        self.process.wait()


@dataclass
class WarmStart:
    """Starts ranks from a standby where there is one that can, else as new interpreters.

    `settings` and `env` are those of the standby; `waker` has something to read when a signal came.
    """

    settings: Mapping[str, Any]
    env: Mapping[str, str]
    log: Path
    waker: int
    standby: Standby | None = None
    chances: int = 3  # standbys that are tried before ranks import for themselves for good
    _fresh: FreshStart = field(default_factory=FreshStart)

    def begin(self, *, quiet: bool) -> None:
        """Make a standby unless there is one that lives. It is ready seconds later."""
        if self.standby is not None and self.standby.process.poll() is not None:
            self.end()
        if self.standby is None and self.chances > 0:
            self.chances -= 1
            adopt_orphans()
            env = dict(self.env) | {
                "OMP_NUM_THREADS": "1",  # one thread: more could not be forked
                "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # nor could a CUDA that was looked at
                "LONGHAUL_ROOM": _PADDING * 4,  # for the variables of a rank, as /proc shows them
            }
            self.standby = Standby.begin(self.settings, env=env, log=self.log, quiet=quiet)

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        listener: int | None,
    ) -> Child:
        descriptors = [stdout, stderr] + ([] if listener is None else [listener])
        if self.standby is not None:
            try:
                if self.standby.wait(READY_S, until=self.waker):
                    return self.standby.fork(argv, env=env, descriptors=descriptors)
                raise NotWarm("it was not ready")
            except (NotWarm, OSError, ValueError) as e:
                self._note(f"ranks start without it: {e}")
                self.end()
        return self._fresh.start(argv, env=env, stdout=stdout, stderr=stderr, listener=listener)

    def is_importing(self) -> bool:
        """Whether the next rank would have to wait for it."""
        return self.standby is not None and not self.standby.has_spoken()

    @property
    def pids(self) -> frozenset[int]:
        return frozenset() if self.standby is None else frozenset({self.standby.process.pid})

    def end(self) -> None:
        if self.standby is not None:
            self.standby.end()
            self.standby = None

    def _note(self, text: str) -> None:
        with self.log.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def adopt_orphans() -> None:
    """What loses its parent below this process becomes its child."""
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
