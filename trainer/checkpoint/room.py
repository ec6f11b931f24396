"""Room on the disk: said in time that the next checkpoint will not fit, and when one did not."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import SaveFailed
from trainer.records.room import free_bytes, shortage
from trainer.records.sizes import size_text
from trainer.reports import SaveReport

_log = logging.getLogger("trainer.checkpoint")
_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "has a quota, which is used up"}


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


@contextmanager
def full_disk_named(file: Path, *, needed: int) -> Iterator[None]:
    """While `file`, of `needed` bytes, is written. Raises: SaveFailed where it has no room."""
    try:
        yield
    except OSError as e:
        if e.errno not in _FULL:
            raise
        raise SaveFailed(
            f"the disk of {file.parent.parent} {_FULL[e.errno]} ({e.strerror}): "
            f"{size_text(needed)} are needed for {file.name}{_free_for(file)}"
        ) from e


def _free_for(file: Path) -> str:
    """What is free, with what the beginning of the file takes; "" where that cannot be known."""
    try:
        begun = file.stat().st_blocks * 512 if file.exists() else 0
        return f", {size_text(free_bytes(file.parent) + begun)} are free"
    except OSError:
        return ""


def failed_text(report: SaveReport, failed: int, *, allowed: int) -> str:
    """What is said of a save with a problem. `failed`: saves in a row, this one among them."""
    if report.succeeded or report.skipped:
        return report.problem
    return (
        f"{report.problem}; training goes on until {allowed} saves in a row have failed "
        f"(this is number {failed}; checkpoint.max_failed_saves)"
    )


def too_many_text(report: SaveReport, failed: int, *, run: Path) -> str:
    text = (
        f"{failed} saves in a row failed, as many as checkpoint.max_failed_saves allows; "
        f"the last: {report.problem}"
    )
    is_full = any(f" {said} (" in report.problem for said in _FULL.values())
    return f"{text}; free space there, then longhaul resume {run}" if is_full else text
