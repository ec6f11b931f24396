"""withdrawn.json: checkpoints that the run has turned its back on, wherever copies of them lie.

A run that goes back (trainer/remedy.py, launch/next_attempt.py) moves later steps aside on its own
disk. Copies elsewhere may be out of reach at that moment; this list, which travels with them, keeps
them from being taken for the newest ones. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainer.records.json_file import write_json

NAME = "withdrawn.json"


@dataclass(frozen=True, order=True)
class Withdrawal:
    """Steps after `after`, saved before `time` (seconds since the epoch) of attempt `attempt`."""

    attempt: int
    time: float
    after: int

    def covers(self, step: int, *, attempt: int, created: float) -> bool:
        return step > self.after and (attempt, created) < (self.attempt, self.time)


def read_withdrawals(path: Path) -> tuple[Withdrawal, ...]:
    """None where there is no such file. Raises: OSError, ValueError if it is damaged."""
    try:
        return decode(path.read_bytes())
    except FileNotFoundError:
        return ()


def add_withdrawal(path: Path, withdrawal: Withdrawal) -> None:
    """Durable when it returns. Raises: OSError, ValueError."""
    found = merged(read_withdrawals(path), (withdrawal,))
    write_json(path, [asdict(one) for one in found])


def merged(*lists: Iterable[Withdrawal]) -> tuple[Withdrawal, ...]:
    return tuple(sorted({one for found in lists for one in found}))


def encode(withdrawals: Iterable[Withdrawal]) -> bytes:
    return (json.dumps([asdict(one) for one in withdrawals], indent=2) + "\n").encode()


def decode(content: bytes) -> tuple[Withdrawal, ...]:
    """Raises: ValueError if it is not such a list."""
    try:
        rows: list[dict[str, Any]] = json.loads(content)
        return tuple(Withdrawal(**row) for row in rows)
    except TypeError as e:
        raise ValueError(f"{NAME} is damaged: {e}") from e
