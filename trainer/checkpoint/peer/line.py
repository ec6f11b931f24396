"""What a rank asks the process that keeps its states, and whether all of it is answered."""

from __future__ import annotations

import time
from typing import Any

from trainer.checkpoint.uploads import Courier
from trainer.checkpoint.wire import value_of
from trainer.errors import LonghaulError

_STUCK_S = 120.0  # a process that says nothing for so long is ended


class Line:
    """What a rank asks its process, and whether all of it is answered."""

    def __init__(self, courier: Courier) -> None:
        self._courier = courier
        self._open = 0
        self._is_reviving = False
        self.problem = ""  # of what was asked last

    def give(self, order: dict[str, Any]) -> None:
        self.problem, self._is_reviving = "", False
        self._open += 1
        self._courier.give(order)

    def fail(self, problem: str) -> None:
        """As if it had been asked and had failed."""
        self.problem = problem

    def ended(self, began: float) -> bool:
        while self._open and (said := self._courier.said()) is not None:
            self._open -= 1
            try:
                value_of(said)
            except LonghaulError as e:
                self.problem = self.problem or str(e)
                if "kind" not in said:  # nobody has said it: there is no process any more
                    self._revive()
        if self._open and time.monotonic() - began > _STUCK_S:
            self.end(f"its process did nothing for {_STUCK_S:.0f} s")
        return not self._open

    def _revive(self) -> None:
        """At once: others wait for what it answers. It is asked for once."""
        if not self._is_reviving and not self._open:
            self._is_reviving = True
            self._open += 1
            self._courier.give({"do": "hold"})

    def end(self, problem: str) -> None:
        self._courier.close()
        self._open, self.problem = 0, problem

    def close(self) -> None:
        self._courier.close()
