"""Which tensors a folder of safetensors holds: names alone, from the index or a file's header."""

from __future__ import annotations

import json
from pathlib import Path

_MOST_BYTES = 100 << 20  # of a header, by the format


def tensor_names(folder: Path) -> frozenset[str]:
    """Empty where there is none, or none that can be read: whoever loads it says what is wrong."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            return frozenset(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
        with (folder / "model.safetensors").open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _MOST_BYTES:
                return frozenset()
            return frozenset(json.loads(file.read(length))) - {"__metadata__"}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return frozenset()
