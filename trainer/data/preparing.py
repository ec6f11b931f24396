"""What every preparation does: one at a time, and refusals as long as nothing is written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.data.store_files import space_named
from trainer.errors import DataError, Refused

Log = Callable[[str], None]


@contextmanager
def nothing_written() -> Iterator[None]:
    """Raises: Refused for what would be a DataError once something had been written."""
    try:
        yield
    except DataError as e:
        raise Refused(str(e)) from e


@contextmanager
def locked(folder: Path, *, log: Log) -> Iterator[None]:
    """One preparation of a folder at a time; the lock ends with the process that holds it."""
    path = folder.with_name(f".{folder.name}.lock")
    with space_named(folder):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log(f"another process is preparing {folder.name}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
