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
    # Not by pid: containers that share the folder have the same few.
    partial = path.with_name(f".{path.name}.{os.urandom(6).hex()}.partial")
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


def read_untrusted_json(path: Path, *, limit_bytes: int = 64 << 20) -> Any:
    """The content of a file that may come from anybody.

    Raises: OSError; ValueError for whatever is wrong with it, too large or nested too deep.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe there would be waited for
    with os.fdopen(os.open(path, flags), "rb") as file:
        content = file.read(limit_bytes + 1) or b""
    if len(content) > limit_bytes:
        raise ValueError(f"it is larger than {limit_bytes:,} bytes")
    return untrusted_json(content)


def untrusted_json(content: bytes) -> Any:
    """Raises: ValueError, whatever is wrong; a name that stands twice too."""
    try:
        return json.loads(content, object_pairs_hook=_each_once)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


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
