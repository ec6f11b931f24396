"""trials.jsonl: what happened to the trials of a sweep, one event a line, appended only.

    asked      total: so many trials in all; more of them are a bracket of their own
    proposed   trial, point, overrides, bracket; of one that goes on from another's checkpoint also
               parent and level
    started    trial: once more, if it was before
    rung       trial, step, value
    promoted   trial: it goes on from that rung
    met        trial 0, step; parts: lines that hold together, for those who met there
    told       trial, to: pause | prune | halt, with `why`; it saves and stops
    waits      trial, state: paused (at a rung) | waiting (to be started), rank_seconds; whether it
               counts as a failure
    ended      trial, state, values, why, rank_seconds, at

The sweep is what these lines say: whoever starts it again reads them, and knows as much.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from launch.sweep.samplers import Told
from trainer.records.json_file import append_line, end_torn_line, read_lines

State = Literal[
    "waiting",  # to be started
    "active",
    "paused",  # at a rung, until the others are there
    "finished",
    "pruned",  # behind the others
    "diverged",  # its settings made it go wrong: bad, not failed
    "failed",  # by something that says nothing of how good its settings are
    "stopped",  # by hand
]
ENDED: tuple[State, ...] = ("finished", "pruned", "diverged", "failed", "stopped")
GOOD: tuple[State, ...] = ("finished", "pruned", "paused")


@dataclass(frozen=True)
class Trial:
    """`level`: rungs passed, by its parent too. `told_to`: what it was asked to stop for, while it
    has not stopped."""

    number: int
    point: Mapping[str, int | float]
    overrides: tuple[str, ...]
    bracket: int = 0
    state: State = "waiting"
    failures: int = 0  # starts that something else ended
    level: int = 0
    rungs: Mapping[int, float] = field(default_factory=dict)
    told_to: str = ""
    values: tuple[float, ...] = ()
    why: str = ""
    rank_seconds: float = 0.0
    at: tuple[int, float] | None = None  # where a pruned one was behind: step, value
    parent: int = 0  # whose checkpoint it went on from

    @property
    def has_ended(self) -> bool:
        return self.state in ENDED

    @property
    def told(self) -> Told:
        return Told(self.number, self.values, self.at, is_bad=self.state == "diverged")


class Journal:
    """The trials by number, and the file that they come from."""

    def __init__(self, path: Path) -> None:
        end_torn_line(path)
        self._path = path
        self.lines: list[dict[str, Any]] = list(lines_in(read_lines(path)))
        self.trials: dict[int, Trial] = trials_of(self.lines)

    @property
    def totals(self) -> list[int]:
        """How many trials were asked for, each time that it was more: a bracket each."""
        return [int(line["total"]) for line in self.lines if line["event"] == "asked"]

    def ask_for(self, total: int) -> None:
        """Trials that are added later meet among themselves."""
        if total > max(self.totals, default=0):
            self._append({"event": "asked", "trial": 0, "total": total})

    def bracket_of(self, number: int) -> int:
        return sum(number > total for total in self.totals)

    def write(self, event: str, trial: int, **facts: Any) -> Trial:
        """Append one event; the trial as it is after it."""
        line = self._append({"event": event, "trial": trial, **facts})
        self.trials[trial] = after(self.trials.get(trial), line)
        return self.trials[trial]

    def meet(self, step: int, parts: Sequence[Mapping[str, Any]]) -> None:
        """All of it or nothing: a sweeper that is killed here leaves nobody half judged."""
        line = {"event": "met", "trial": 0, "step": step, "parts": [dict(one) for one in parts]}
        for part in lines_in([self._append(line)]):
            number = int(part["trial"])
            self.trials[number] = after(self.trials.get(number), part)

    def _append(self, line: dict[str, Any]) -> dict[str, Any]:
        line["time"] = round(time.time(), 3)
        append_line(self._path, line)
        self.lines += lines_in([line])
        return line


def lines_in(lines: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """With the parts of those who met in their places."""
    for line in lines:
        if line["event"] == "met":
            yield from ({**part, "time": line["time"]} for part in line["parts"])
        else:
            yield dict(line)


def read_trials(path: Path) -> dict[int, Trial]:
    return trials_of(lines_in(read_lines(path)))


def trials_of(lines: Iterable[Mapping[str, Any]]) -> dict[int, Trial]:
    found: dict[int, Trial] = {}
    for line in lines:
        number = int(line["trial"])
        if number in found or line["event"] == "proposed":
            found[number] = after(found.get(number), line)
    return found


def after(trial: Trial | None, line: Mapping[str, Any]) -> Trial:
    """Pure. `trial` None: it is proposed by this line."""
    if trial is None or line["event"] == "proposed":
        overrides, bracket = tuple(line["overrides"]), int(line["bracket"])
        made = Trial(int(line["trial"]), dict(line["point"]), overrides, bracket)
        return replace(made, parent=int(line.get("parent", 0)), level=int(line.get("level", 0)))
    match line["event"]:
        case "started":
            return replace(trial, state="active", told_to="", why="")
        case "rung":
            return replace(trial, rungs={**trial.rungs, int(line["step"]): float(line["value"])})
        case "promoted":
            return replace(trial, level=trial.level + 1)
        case "told":
            return replace(trial, told_to=line["to"], why=line.get("why", ""))
        case "waits":
            return replace(
                trial,
                state=line["state"],
                failures=trial.failures + bool(line.get("counts")),
                told_to="",
                rank_seconds=float(line["rank_seconds"]),
                why=str(line.get("why", "")),
            )
        case "ended":
            at = line.get("at")
            return replace(
                trial,
                state=line["state"],
                told_to="",
                values=tuple(line.get("values", ())),
                why=str(line.get("why", "")),
                rank_seconds=float(line["rank_seconds"]),
                at=(int(at[0]), float(at[1])) if at else None,
            )
    return trial
