"""A rank's sign of life: which phase of which step it is in, and since when.

Written to a few bytes of shared memory at phase boundaries (about a microsecond), read from
outside the rank by a process that has no part in its collectives.
"""

from __future__ import annotations

from typing import Literal, Protocol

Phase = Literal[
    "imports", "meet", "build", "load", "data", "forward", "backward", "agree", "update",
    "save", "eval", "end",
]  # fmt: skip


class Pulse(Protocol):
    def beat(self, phase: Phase, step: int) -> None:
        """The rank enters `phase` of `step`."""


class NoPulse:
    """Nobody watches."""

    def beat(self, phase: Phase, step: int) -> None:
        return
