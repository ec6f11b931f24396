"""JSON on disk: whole files replaced atomically, and append-only files of one object a line.

Readers never see half a file; a torn last line (a writer killed in mid-write) is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` so that a crash leaves the old file or the new one. Mode 0600."""
    text = json.dumps(value, indent=2, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def read_json(path: Path) -> Any:
    """Raises: FileNotFoundError, json.JSONDecodeError."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_line(path: Path, value: Any) -> None:
    """Add one line in one write, so that concurrent writers do not mix. Mode 0600."""
    line = json.dumps(value, allow_nan=False) + "\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def end_torn_line(path: Path) -> None:
    """A writer killed in mid-line leaves no newline; the next line must not grow onto it."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            file.write(b"\n")


def read_lines(path: Path) -> Iterator[Any]:
    """The objects of an append-only file, oldest first; nothing if it does not exist."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.endswith("\n"):
                return  # torn by a kill; the writer's next attempt starts a new line
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # a torn line that a later attempt wrote after


def fsync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
