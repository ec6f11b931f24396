"""A folder that is there whole, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import Refused
from trainer.records.json_file import fsync_folder


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """Gives a folder to write into, which becomes `folder` by one rename if nothing is raised.

    Raises: Refused if `folder` exists.
    """
    if folder.exists():
        raise Refused(f"{folder} exists already; choose another folder with --to, or remove it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    incoming = folder.with_name(f"{folder.name}.incoming-{os.getpid()}")
    incoming.mkdir(mode=0o700)
    try:
        yield incoming
        incoming.rename(folder)
        fsync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(incoming, ignore_errors=True)
        raise
