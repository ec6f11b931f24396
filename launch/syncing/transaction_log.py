"""The .wandb file of one attempt: how far it is whole. Standard library only.

The format is LevelDB's log with another header: ":W&B", a magic number and a version in 7 bytes,
then blocks of 32 KiB. A record is one chunk (type 1) or a first (2), middle (3) and last (4); a
chunk is CRC-32 of its type and data, length and type in 7 bytes, and data; zeros pad a block.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

_IDENT = b":W&B"
_HEADER, _BLOCK, _CHUNK = 7, 32768, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


@dataclass(frozen=True)
class Whole:
    """`records` whole ones end at byte `end` of `size`; `damaged`: what follows is no torn tail."""

    records: int
    end: int
    size: int
    damaged: bool

    @property
    def is_torn(self) -> bool:
        return self.end < self.size


def look(path: Path) -> Whole:
    """Raises: OSError; ValueError if it is no such file."""
    data = path.read_bytes()
    if not data.startswith(_IDENT):
        raise ValueError(f"{path} is no transaction log of W&B")
    at = end = _HEADER
    records, expected = 0, (_FULL, _FIRST)
    while at + _CHUNK <= len(data):
        left = _BLOCK - at % _BLOCK
        crc, length, kind = struct.unpack("<IHB", data[at : at + _CHUNK])
        if left < _CHUNK or kind == 0:  # padding
            at += left
            end = end if expected != (_FULL, _FIRST) else min(at, len(data))
            continue
        chunk = data[at + _CHUNK : at + _CHUNK + length]
        if len(chunk) < length:
            break
        if kind not in expected or zlib.crc32(bytes([kind]) + chunk) != crc:
            return Whole(records, end, len(data), damaged=True)
        at += _CHUNK + length
        expected = (_FULL, _FIRST) if kind in (_FULL, _LAST) else (_MIDDLE, _LAST)
        if kind in (_FULL, _LAST):
            records, end = records + 1, at
    return Whole(records, end, len(data), damaged=False)


def cut(path: Path, whole: Whole) -> Path:
    """Keep what is whole; what is cut off goes into a file beside it, which is returned."""
    kept = path.with_name(f"{path.name}.cut-at-{whole.end}")
    with path.open("rb+") as file:
        file.seek(whole.end)
        descriptor = os.open(kept, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as aside:
            aside.write(file.read())
            aside.flush()
            os.fsync(aside.fileno())
        file.truncate(whole.end)
        file.flush()
        os.fsync(file.fileno())
    return kept
