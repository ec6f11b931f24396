"""What a run had done on its way to an incident, by metrics.jsonl. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.records.metrics import is_guard_line


@dataclass(frozen=True)
class WayBack:
    """After step `to` the samples [start, stop) were left out."""

    to: int
    start: int
    stop: int


@dataclass(frozen=True)
class History:
    """`left_out`: steps that were not applied. `newest`: later checkpoints are of another way."""

    left_out: frozenset[int] = frozenset()
    ways_back: tuple[WayBack, ...] = ()
    newest: int | None = None


def history_of(lines: Iterable[Mapping[str, Any]], *, step: int, time: float) -> History:
    """Of the incident that happened in `step` at `time`. `lines`: of metrics.jsonl, in order."""
    left_out: set[int] = set()
    ways: list[WayBack] = []
    newest: int | None = None
    for line in lines:
        is_later = line["time"] > time
        if line.get("kind") == "attempt" and not is_later:  # it went on from that step's checkpoint
            left_out = {s for s in left_out if s <= line["step"]}
            ways = [way for way in ways if way.to < line["step"]]
        if not is_guard_line(line):
            continue
        if line["action"] == "skip" and not is_later:
            left_out.add(line["step"])
        if line["action"] == "rewind" and is_later and line["to_step"] < step:
            newest = min(line["to_step"], step if newest is None else newest)
        if line["action"] == "rewind" and not is_later:
            to, (start, stop) = line["to_step"], line["samples"]
            left_out = {s for s in left_out if s <= to}
            ways = [WayBack(min(way.to, to), way.start, way.stop) for way in ways]
            ways.append(WayBack(to, start, stop))
    return History(frozenset(left_out), tuple(ways), newest)
