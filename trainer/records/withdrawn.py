"""withdrawn.json: checkpoints that the run has turned its back on, wherever copies of them lie.

A run that goes back (trainer/remedy.py, launch/run/next_attempt.py) moves later steps aside on its
own disk. Copies elsewhere may be out of reach at that moment; this list, which travels with them,
keeps them from being taken for the newest ones. Lists are merged, never cut: one that is over says
so.
Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trainer.records.json_file import write_json

NAME = "withdrawn.json"


@dataclass(frozen=True, order=True)
class Withdrawal:
    """Steps after `after`, saved before `time` (seconds since the epoch) of attempt `attempt`.

    `ended`: the run has turned round again, and the steps count as if it had not gone back.
    """

    attempt: int
    time: float
    after: int
    ended: bool = False

    def covers(self, step: int, *, attempt: int, created: float) -> bool:
        if self.ended:
            return False
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


def end_withdrawals(path: Path, *, attempt: int, after: int) -> None:
    """Those that this attempt made of the steps after `after`. Raises: OSError, ValueError."""
    found = read_withdrawals(path)
    mine = {one for one in found if (one.attempt, one.after) == (attempt, after)}
    ended = tuple(replace(one, ended=True) if one in mine else one for one in found)
    if ended != found:
        write_json(path, [asdict(one) for one in ended])


def merged(*lists: Iterable[Withdrawal]) -> tuple[Withdrawal, ...]:
    """All that any list knows; what one of them knows to be over is over."""
    every = {one for found in lists for one in found}
    over = {replace(one, ended=False) for one in every if one.ended}
    return tuple(sorted(one for one in every if one.ended or one not in over))


def encode(withdrawals: Iterable[Withdrawal]) -> bytes:
    return (json.dumps([asdict(one) for one in withdrawals], indent=2) + "\n").encode()


def decode(content: bytes) -> tuple[Withdrawal, ...]:
    """Raises: ValueError if it is not such a list."""
    try:
        rows: list[dict[str, Any]] = json.loads(content)
        return tuple(Withdrawal(**row) for row in rows)
    except TypeError as e:
        raise ValueError(f"{NAME} is damaged: {e}") from e
