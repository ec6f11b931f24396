"""What comes of trials that met at a step, and the journal's lines of it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launch.sweep.journal import Trial
from launch.sweep.space import Point, Space


@dataclass(frozen=True)
class Child:
    """A trial that goes on from the checkpoint of `parent`, with settings of its own."""

    number: int
    parent: int
    point: Point


@dataclass(frozen=True)
class Meeting:
    """Who goes on and who does not."""

    step: int
    best: tuple[int, ...]
    others: tuple[int, ...]
    children: tuple[Child, ...] = ()

    @property
    def why(self) -> str:
        count = len(self.best) + len(self.others)
        return f"behind at step {self.step}, where {len(self.best)} of {count} went on"


def lines_of(
    meeting: Meeting, trials: Mapping[int, Trial], space: Space, *, sign: int
) -> list[dict[str, Any]]:
    """`sign`: -1 where the metric is one of which more is better."""
    lines: list[dict[str, Any]] = []
    for number in meeting.best:
        cost = trials[number].rank_seconds
        lines.append({"event": "promoted", "trial": number})
        lines.append({"event": "waits", "trial": number, "state": "waiting", "rank_seconds": cost})
    for number in meeting.others:
        one = trials[number]
        at = [meeting.step, sign * one.rungs[meeting.step]]
        ended = ended_line(number, "pruned", why=meeting.why)
        lines.append({**ended, "at": at, "rank_seconds": one.rank_seconds})
    for child in meeting.children:
        lines.append(
            {
                "event": "proposed",
                "trial": child.number,
                "parent": child.parent,
                "level": trials[child.parent].level + 1,
                "bracket": 0,
                "point": dict(child.point),
                "overrides": list(space.overrides(child.point)),
            }
        )
    return lines


def ended_line(number: int, state: str, *, why: str) -> dict[str, Any]:
    """Of a trial without a value; it has cost nothing, unless more is said."""
    line = {"event": "ended", "trial": number, "state": state, "why": why, "values": []}
    return {**line, "rank_seconds": 0.0}


def one_line(text: str) -> str:
    """What a person reads first: the problem, where there is a list of them."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[1].startswith("1. ") else lines[0]).removeprefix(
        "1. "
    )
