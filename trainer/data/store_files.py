"""Files of a store while it is written: made, taken up again, flushed, put in place."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from trainer.errors import DataError
from trainer.records.json_file import fsync_folder

PROGRESS = "progress.json"  # of a store that is being made
_READ_BYTES = 1 << 24
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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


def put_in_place(incoming: Path, final: Path) -> None:
    """Make a store real whose manifest is written: durable, then renamed."""
    (incoming / PROGRESS).unlink(missing_ok=True)
    fsync_folder(incoming)
    if final.exists():  # found damaged before, or the user wants it made again
        shutil.rmtree(final)
    incoming.replace(final)
    fsync_folder(final.parent)


@contextmanager
def space_named(folder: Path) -> Iterator[None]:
    """Turns "no space" into one sentence. Raises: DataError."""
    try:
        yield
    except OSError as e:
        if e.errno not in _NO_SPACE:
            raise
        raise DataError(
            f"no space left for the token store {folder} ({e.strerror}); free some or set "
            "data.store_root to a larger disk, then run again: finished shards are kept"
        ) from e
