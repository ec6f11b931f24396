"""copies.json: where copies of the run's steps were put, and the newest of them there.

So a place that was used and looks empty now (a disk that is not mounted, another account) is told
from one that nothing was ever copied to.
Standard library only.
"""

from __future__ import annotations

from pathlib import Path

from trainer.records.json_file import read_json, write_json


def copied_to(path: Path, url: str) -> int | None:
    """The newest step known to be copied to this place; None if none is.

    Raises: OSError, ValueError if the file is damaged.
    """
    return _read(path).get(url)


def newest_of(path: Path) -> tuple[str, int] | None:
    """The place with the newest step, and that step; None if nothing was ever copied.

    Raises: OSError, ValueError.
    """
    return max(_read(path).items(), key=lambda place: place[1], default=None)


def note_copies(path: Path, url: str, step: int) -> None:
    """Durable when it returns. Raises: OSError, ValueError."""
    known = _read(path)
    if known.get(url) != step:
        write_json(path, known | {url: step})


def _read(path: Path) -> dict[str, int]:
    try:
        found = read_json(path)
    except FileNotFoundError:
        return {}
    if not isinstance(found, dict) or not all(isinstance(step, int) for step in found.values()):
        raise ValueError(f"{path.name} is damaged: it should be URLs, each with a step")
    return found


def emptied(path: Path, url: str, step: int) -> str:
    """What is to be said of a place where copies were put and none is to be seen."""
    return (
        f"{url} shows no step of this run, though step {step} was copied there: is it mounted, and "
        f"is it the same account? If those copies were removed on purpose, remove {path}"
    )
