"""Sizes in bytes as people read and write them."""

from __future__ import annotations

import re

_POWERS = " KMGT"


def size_text(num_bytes: float) -> str:
    """Binary units, the largest that leaves at least 1: 1536 -> "1.5 KiB"."""
    value = float(num_bytes)
    if value < 1024:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if round(value, 1) < 1024:
            return f"{value:,.1f} {unit}"
    return f"{value / 1024:,.1f} TiB"


def bytes_of(text: str) -> int | None:
    """'80GB' is 80 x 10^9 bytes, '80GiB' 80 x 2^30, '512' bytes. None: that is no size."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    if not found:
        return None
    power = _POWERS.index(found[2].upper() or " ")
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power) or None
