"""Files of a store while it is written: made, taken up again, flushed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from trainer.errors import DataError

_READ_BYTES = 1 << 24


def create(path: Path) -> IO[bytes]:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb", 0)


def reopened(path: Path, size: int) -> IO[bytes]:
    """Cut to `size` bytes, to go on behind them."""
    if path.stat().st_size < size:
        raise DataError(f"{path} is shorter than recorded; delete {path.parent} and prepare again")
    file = path.open("r+b", buffering=0)
    file.truncate(size)
    file.seek(size)
    return file


def write_all(file: IO[bytes], raw: bytes) -> None:
    """An unbuffered write may take a part, as it does when the disk fills; the next one fails."""
    rest = memoryview(raw)
    while rest:
        rest = rest[file.write(rest) :]


def flushed(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            yield piece
