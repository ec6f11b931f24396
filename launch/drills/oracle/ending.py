"""Check 7: every attempt ended with the exit code and the recorded cause that it should have."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ending:
    """How an attempt must have ended. `why`: a pattern found in the recorded cause."""

    exit_code: int
    why: str


def wrong_endings(
    attempts: Sequence[Mapping[str, Any]], expected: Sequence[Ending], *, code: int | None = None
) -> list[str]:
    """`attempts`: lines of attempts.jsonl. `code`: what the last command itself returned."""
    found = []
    if len(attempts) != len(expected):
        found.append(f"{len(attempts)} attempts instead of {len(expected)}")
    for number, (seen, wanted) in enumerate(zip(attempts, expected, strict=False), 1):
        if seen.get("exit_code") != wanted.exit_code:
            found.append(
                f"attempt {number} ended with {seen.get('exit_code')}, not {wanted.exit_code}: "
                f"{seen.get('why')}"
            )
        elif not re.search(wanted.why, str(seen.get("why"))):
            found.append(f"attempt {number}: cause {seen.get('why')!r} has no {wanted.why!r}")
    if code is not None and expected and code != expected[-1].exit_code:
        found.append(f"the command returned {code}, not {expected[-1].exit_code}")
    return found
