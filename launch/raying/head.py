"""Whether the head of a cluster still answers.

Ray's own calls do not say: without its head they stand still for a minute, and then Ray ends the
process that made them. So the head's port is knocked at, by a thread of its own.
"""

from __future__ import annotations

import socket
import threading
import time

PATIENCE_S = 40.0  # a head that is started again in that time is the same cluster to Ray
_EVERY_S = 2.0


class Head:
    """`address`: host:port of it. One at which nobody ever answered says nothing: Ray knows a way
    there that we do not."""

    def __init__(
        self, address: str, *, patience_s: float = PATIENCE_S, every_s: float = _EVERY_S
    ) -> None:
        self._address = address
        self._patience_s = patience_s
        self._every_s = every_s
        self._silent_since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head", daemon=True)
        self._thread.start()

    def gone(self) -> str:
        """What to do about it; empty: it answers, or did a moment ago. Never waits."""
        since = self._silent_since
        if since is None or time.monotonic() - since < self._patience_s:
            return ""
        silent = f"has not answered for {self._patience_s:.0f} s"
        fix = "start a cluster, then longhaul resume with its launch.address"
        return f"the head of the Ray cluster at {self._address} {silent}; {fix}"

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        has_answered = False
        while not self._closed.wait(self._every_s):
            if self._answers():
                has_answered, self._silent_since = True, None
            elif has_answered and self._silent_since is None:
                self._silent_since = time.monotonic()

    def _answers(self) -> bool:
        host, _, port = self._address.rpartition(":")
        try:
            place = (host.strip("[]"), int(port))  # an IPv6 address has brackets
            socket.create_connection(place, timeout=self._every_s).close()
        except OSError:
            return False
        return True
