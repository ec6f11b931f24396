"""Says in time that the next checkpoint will not fit on the disk."""

from __future__ import annotations

import logging
from pathlib import Path

from trainer.records.room import shortage

_log = logging.getLogger("trainer.checkpoint")


class RoomWatch:
    """On rank 0. `expected_bytes`: of a checkpoint, until one was written; 0: nothing is said."""

    def __init__(self, folder: Path, expected_bytes: int) -> None:
        self._folder = folder
        self._expected_bytes = expected_bytes
        self._is_short = False

    def saved(self, num_bytes: int) -> None:
        """One was written, and retention has been at work: is there room for the next?"""
        if self._expected_bytes:
            self._expected_bytes = num_bytes
        self.look()

    def look(self) -> None:
        """Say so if not; again only where there was room in between."""
        short = shortage(self._folder, self._expected_bytes)
        if short and not self._is_short:
            _log.warning("%s for the next checkpoint: make room, or its save will fail", short)
        self._is_short = bool(short)
