"""waits.txt of an attempt: what its driver waits for, for whoever asks how the run stands."""

from __future__ import annotations

from contextlib import suppress

from trainer.records.run_files import AttemptFiles

_NAME = "waits.txt"


def say_waiting(files: AttemptFiles, text: str) -> None:
    with suppress(OSError):
        (files.root / _NAME).write_text(text, encoding="utf-8")


def waits_no_more(files: AttemptFiles) -> None:
    with suppress(OSError):
        (files.root / _NAME).unlink(missing_ok=True)


def waiting_for(files: AttemptFiles) -> str:
    """Empty: nothing, as far as anybody said."""
    with suppress(OSError):
        return (files.root / _NAME).read_text(encoding="utf-8", errors="replace").strip()
    return ""
