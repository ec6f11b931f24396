"""Keeps a process that slept through its own replacement from publishing what it still holds.

The owner is read right before a step becomes real. Who takes a run over writes `owner` first and
then moves every unfinished save away, so that a rename that was about to happen fails: what was
published before is seen by the new attempt, what comes after is not published.
"""

from __future__ import annotations

from pathlib import Path

from trainer.records.owner import Owner, refuse_if_superseded


class Fence:
    """Of one attempt on one rank; `checkpoints` is RunFiles.checkpoints.

    `known`: the owner when the rank started, where a writer process is told it.
    Raises: Superseded; OSError if the owner cannot be read.
    """

    def __init__(self, checkpoints: Path, attempt: int, *, known: Owner | None = None) -> None:
        self._owner = checkpoints.parent / "owner"
        self._attempt = attempt
        self.known = known or refuse_if_superseded(self._owner, attempt)

    def check(self) -> None:
        """Raises: Superseded; OSError if the owner cannot be read now."""
        refuse_if_superseded(self._owner, self._attempt, known=self.known)
