"""What runs on a node inside a process of Ray's: starts the agent there and carries its words.

Plain Python, so that it needs no cluster to be tested. Ray calls each method in a thread of its
own. The agent is no child of this process: Ray kills those at once when the driver goes, and the
ranks are to save first. It ends because its stdin ends (launch/node/driven.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from launch.driving.pipes import PipeHandle
from trainer.errors import Exit

THREADS = 4  # start, hear (which waits), tell, end
_TURN_S = 0.05
# The agent's parent: ends with its code, and passes "end now" on to it. Ray may kill it.
_HOLDER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
child = os.fork()
if child == 0:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    os.setsid()
    os.execv(sys.argv[1], sys.argv[1:])
def end(*_):
    os.kill(child, signal.SIGKILL)
signal.signal(signal.SIGTERM, end)
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
for descriptor in (0, 1, 2):
    os.close(descriptor)
_, status = os.waitpid(child, 0)
code = os.waitstatus_to_exitcode(status)
os._exit(code if code >= 0 else 128 - code)
"""


class AgentHolder:
    """One node's agent."""

    def __init__(self) -> None:
        self._pipes: PipeHandle | None = None
        self._early: list[bytes] = []  # for the agent, from before it was started
        self._refused = b""  # why it could not be started
        self._said = b""  # what the driver has not confirmed to have
        self._offset = 0  # of its first byte in all that was said
        self._lock = threading.Lock()

    def start(
        self, argv: Sequence[str], env: Mapping[str, str], workdir: str, python: str | None
    ) -> None:
        """A folder that is not there is told like an agent's last words."""
        command = [python or sys.executable, *argv[1:]]
        try:
            process = subprocess.Popen(
                [sys.executable, "-S", "-E", "-c", _HOLDER, *command],
                cwd=workdir,
                env=_own_environment() | dict(env),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as e:
            self._refused = f"launch.workdir={workdir}: {e.strerror}\n".encode()
            return
        with self._lock:
            self._pipes = PipeHandle(process)
            self._pipes.tell(b"".join(self._early))

    def tell(self, data: bytes) -> None:
        """Calls may overtake each other: this one may come before `start`."""
        with self._lock:
            if self._pipes is None:
                self._early.append(data)
            else:
                self._pipes.tell(data)

    def hear(self, offset: int, patience_s: float) -> tuple[bytes, int | None]:
        """(what was said from byte `offset` on, exit code); waits a little for either."""
        code = None
        for _ in range(max(1, round(patience_s / _TURN_S))):
            with self._lock:
                if self._refused:
                    return self._refused[offset:], Exit.REFUSED
                if self._pipes is not None:
                    code = self._pipes.poll()  # asked first: last words are heard all the same
                    offset = max(offset, self._offset)  # a question that was overtaken
                    self._said = self._said[offset - self._offset :] + self._pipes.heard()
                    self._offset = offset
                if self._said or code is not None:
                    break
            time.sleep(_TURN_S)
        return self._said, code

    def end(self) -> None:
        """The agent and whatever it started, now."""
        if self._pipes is not None:
            self._pipes.process.terminate()
            self._pipes.process.wait()
            self._pipes.end()


def _own_environment() -> dict[str, str]:
    """Of the node, without what belongs to Ray: its token is nobody else's business."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
