"""`owner` of a run folder: the one attempt, and the one agent of it, that may write to the run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.errors import Superseded
from trainer.records.json_file import read_json, write_json


@dataclass(frozen=True)
class Owner:
    """`pid`, `start_ticks` and `boot_id` name one process of `host` for ever."""

    attempt: int
    host: str = ""
    pid: int = 0
    start_ticks: int = 0
    boot_id: str = ""

    def __str__(self) -> str:
        where = f" (process {self.pid} on {self.host})" if self.host else ""
        return f"attempt {self.attempt}{where}"


def write_owner(path: Path, owner: Owner) -> None:
    write_json(path, asdict(owner))


def read_owner(path: Path) -> Owner | None:
    """None if nobody has owned the run yet. Raises: OSError; Superseded if it is damaged."""
    try:
        value: Any = read_json(path)
        return Owner(**value) if isinstance(value, dict) else Owner(attempt=int(value))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as e:
        raise Superseded(f"{path} is damaged ({e}), so nobody knows who may write here") from e


def refuse_if_superseded(path: Path, attempt: int, *, known: Owner | None = None) -> Owner | None:
    """The owner, which is this attempt; None in a folder that has no owner.

    `known`: what was read before; a second agent of the same attempt is another owner.
    Raises: Superseded if somebody else may write; OSError if that cannot be read.
    """
    owner = read_owner(path)
    if owner is None or (owner.attempt == attempt and known in (None, owner)):
        return owner
    raise Superseded(
        f"attempt {attempt} may no longer write to this run: {owner} has taken it over"
    )
