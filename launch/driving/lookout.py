"""Which nodes are there, asked in a thread of its own: an answer may take as long as a time-out."""

from __future__ import annotations

import threading
import time

from launch.driving.nodes import Node, Nodes


class Lookout:
    """`interval_s` lies between two answers while somebody wants to know."""

    def __init__(self, nodes: Nodes, *, interval_s: float) -> None:
        self._nodes = nodes
        self._interval_s = interval_s
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._answer: tuple[float, list[Node]] = (-1.0, [])  # when it was asked, what was said
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._look, name="lookout", daemon=True)
        self._thread.start()

    def ask(self) -> None:
        self._wanted.set()

    def since(self, asked: float) -> list[Node] | None:
        """The answer to a question that was put after `asked` (time.monotonic()); None: not yet.

        Raises: what the place itself raised.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            when, found = self._answer
        return found if when >= asked else None

    def close(self) -> None:
        self._ended = True
        self._wanted.set()

    def _look(self) -> None:
        while self._wanted.wait() and not self._ended:
            self._wanted.clear()
            asked = time.monotonic()
            try:
                found = self._nodes.alive()
            except Exception as e:  # carried to the main thread, which raises it
                with self._lock:
                    self._error = e
                return
            with self._lock:
                self._answer = (asked, found)
            time.sleep(self._interval_s)
