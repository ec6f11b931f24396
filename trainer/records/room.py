"""Whether a checkpoint will fit where it is to be written: asked before, not found out after."""

from __future__ import annotations

import os
from pathlib import Path

from trainer.records.sizes import size_text


def free_bytes(place: Path) -> int:
    """What a user may still write where `place` is, or will be made. Raises: OSError."""
    while not place.exists() and place != place.parent:
        place = place.parent
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


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
