"""Whether a checkpoint will fit where it is to be written: asked before, not found out after."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import RunFolderError
from trainer.records.sizes import size_text


def free_bytes(place: Path) -> int:
    """What a user may still write where `place` is, or will be made. Raises: OSError."""
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@contextmanager
def place_told(run: Path) -> Iterator[None]:
    """While the run's own records are written.

    Raises: RunFolderError where they have no room, or where the folder is not there any more.
    """
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"the disk of {run} is full, also for the run's own records ({e.strerror}); free "
                f"space there, then longhaul resume {run}"
            ) from e
        if e.errno == errno.ENOENT and not run.exists():
            raise RunFolderError(
                f"{run} was moved or removed while it trained; where it lies now, longhaul resume "
                "FOLDER goes on from its last checkpoint"
            ) from e
        raise


def shortage(place: Path, needed: int) -> str:
    """Why `needed` bytes will not fit; "" where they do, or where nothing can be known.

    Quotas are not seen: a save that meets one fails, and says so.
    """
    try:
        free = free_bytes(place)
    except OSError:
        return ""
    if free >= needed:
        return ""
    return f"{place} has {size_text(free)} free, and {size_text(needed)} are needed"
