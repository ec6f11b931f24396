"""A page to a file: whole or not at all, for its owner alone."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from trainer.errors import Refused


def write_page(path: Path, text: str) -> None:
    """Raises: Refused where it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except OSError as e:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise Refused(f"cannot write {path}: {e.strerror}; --to FILE names another place") from e
