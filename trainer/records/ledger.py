"""ledger/node-0.jsonl: what happened to a run on one node and when, by its agent. Append-only.

Every line has `event`, `attempt`, `time` (seconds since the epoch, for people), `clock`
(CLOCK_MONOTONIC seconds, for durations) and `boot` (which boot of which machine that clock is of):

    attempt      an attempt begins: ranks
    rank         a rank's process is started: rank, pid
    training     the first rank of the node begins its first step: step
    first_step   it has done it
    spent        its seconds by phase so far, where it is, steps made, the furthest of them
    straggler    rank, ratio, step; `well` when it is one no longer: rank
    hang         rank, phase, step, stalled_s, limit_s, waited_since
    stacks       where they are: folder
    rank_ended   rank, code
    ended        the attempt is over: exit_code, why

Standard library only. A torn last line (agent killed in mid-write) is left out when read.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.records.json_file import append_line, end_torn_line, read_lines

SPENT_EVERY_S = 60.0  # so much is lost with an agent that is killed
_END_BYTES = 64 << 10


@dataclass(frozen=True)
class Event:
    event: str
    attempt: int
    time: float
    clock: float
    boot: str
    facts: dict[str, Any] = field(default_factory=dict)


class Ledger:
    """Appends the events of one attempt. A disk that refuses them ends nothing."""

    def __init__(self, path: Path, *, attempt: int) -> None:
        self._path = path
        self._attempt = attempt
        self._boot = boot_id()
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            end_torn_line(path)

    def write(self, event: str, **facts: Any) -> None:
        line = {
            "event": event,
            "attempt": self._attempt,
            "time": round(time.time(), 3),
            "clock": round(time.monotonic(), 3),
            "boot": self._boot,
        }
        try:
            append_line(self._path, line | facts)
        except OSError:
            return


def read_ledger(path: Path) -> list[Event]:
    """Oldest first; lines that are no events are left out."""
    return [event for line in read_lines(path) if (event := _event(line)) is not None]


def read_newest(path: Path, event: str) -> Event | None:
    """The last one of that name, if it stands in the end of the file, which alone is read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _END_BYTES))
            lines = file.read().split(b"\n")
    except OSError:
        return None
    for line in reversed(lines):
        try:
            found = _event(json.loads(line))
        except ValueError:
            continue  # cut off at the start, or torn at the end
        if found is not None and found.event == event:
            return found
    return None


def _event(line: Any) -> Event | None:
    heads = ("event", "attempt", "time", "clock", "boot")
    if not isinstance(line, dict) or any(head not in line for head in heads):
        return None
    return Event(
        str(line["event"]),
        int(line["attempt"]),
        float(line["time"]),
        float(line["clock"]),
        str(line["boot"]),
        {key: value for key, value in line.items() if key not in heads},
    )


def slow_ranks(events: Sequence[Event]) -> dict[int, float]:
    """Stragglers of the newest attempt that are not well again: how many times slower."""
    found: dict[int, float] = {}
    for event in events:
        if event.event == "attempt":
            found = {}
        elif event.event == "straggler":
            found[event.facts["rank"]] = event.facts["ratio"]
        elif event.event == "well":
            found.pop(event.facts["rank"], None)
    return found


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
