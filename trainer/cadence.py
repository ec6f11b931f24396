"""When to save, chosen while training runs: rank 0 measures and decides, all ranks are told.

Nothing is exchanged at ordinary steps: once after the first steps of an attempt, and once after
each save, when all ranks are together anyway.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from trainer.capacity.interval import (
    IN_NO_MEMORY,
    Costs,
    Failures,
    Limits,
    Outlived,
    assumed,
    choose,
    faded,
    outlived,
)
from trainer.dist.world import World
from trainer.errors import Exit
from trainer.records.json_file import read_lines
from trainer.reports import SaveReport

_FIRST_STEPS = 5  # warming up counts little in the median of so many
_KEPT = 20  # last steps, last saves
_NEW = 0.3  # weight of the newest stall in the mean
_P90 = 0.9
_OURS = ("crash", "hang", "node", "oom", "hardware")  # causes that lose what was not saved
_CUT_SHORT = ("preempt", "time_limit")  # these too, if there was no time to save


class SaveWhenBest:
    """Due when the interval that pays best is over. `attempts_log`: the run's attempts so far.

    `nodes_in_memory`: how many keep states in memory; 0: none does.
    """

    def __init__(
        self,
        world: World,
        *,
        checkpoint_bytes: int,
        asynchronous: bool,
        attempts_log: Path,
        step: int,
        saved: dict[str, Any] | None = None,
        limits: Limits | None = None,
        nodes_in_memory: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._world = world
        self._bytes = checkpoint_bytes
        self._asynchronous = asynchronous
        self._attempts_log = attempts_log
        self._limits = limits or Limits()
        self._nodes_in_memory = nodes_in_memory
        self._clock = clock
        self._began = clock()
        self._lines: list[dict[str, Any]] | None = None  # of earlier attempts
        known = saved or {}
        self._every: int | None = known.get("every")
        self._stall_s: float | None = known.get("stall_s")
        self._writes = deque[float](known.get("write_s", ()), maxlen=_KEPT)
        self._laps = deque[float](maxlen=_KEPT)
        self._step_s: float | None = known.get("step_s")
        self._at: tuple[int, float] | None = None  # the step before and when it was over
        self._steps = 0
        self._last = step
        self._untold = ""  # why the interval is what it is, until a save tells it

    def due(self, step: int) -> bool:
        """After every step, on all ranks. Collective once in an attempt."""
        self._lap(step)
        self._last = min(self._last, step)  # the run may have gone back to a checkpoint
        if self._steps == _FIRST_STEPS:
            self._choose()
        if self._every is None or step - self._last < self._every:
            return False
        self._last = step
        self._at = None  # a save is no step
        return True

    def observe(self, report: SaveReport) -> SaveReport:
        """A save has ended, alike on all ranks; the report with what follows. Collective."""
        if not report.succeeded or report.write_s <= 0.0:
            return report
        old = self._stall_s if self._stall_s is not None else report.stall_s
        self._stall_s = _NEW * report.stall_s + (1 - _NEW) * old
        self._writes.append(report.write_s)
        self._choose()
        why, self._untold = self._untold, ""
        return replace(report, save_every=self._every or 0, save_every_why=why)

    def saved(self) -> dict[str, Any]:
        """For the checkpoint: an attempt that follows begins with what this one has measured."""
        return {
            "every": self._every,
            "stall_s": self._stall_s,
            "write_s": list(self._writes),
            "step_s": self._seconds_a_step(),
        }

    def _lap(self, step: int) -> None:
        now = self._clock()
        if self._at is not None and self._at[0] == step - 1:
            self._laps.append(now - self._at[1])
        self._at = (step, now)
        self._steps += 1

    def _seconds_a_step(self) -> float | None:
        return median(self._laps) if self._laps else self._step_s

    def _choose(self) -> None:
        """Nothing changes as long as no step was measured."""
        steps, why = self._world.lead(self._decided)
        if steps and steps != self._every:
            self._every, self._untold = steps, why

    def _decided(self) -> tuple[int, str]:
        step_s = self._seconds_a_step()
        if not step_s:
            return 0, ""
        ranks = self._world.place.world_size
        costs = assumed(
            rank_bytes=self._bytes / ranks,
            all_bytes=self._bytes,
            asynchronous=self._asynchronous,
            step_s=step_s,
        )
        if self._stall_s is not None:
            costs = Costs(stall_s=self._stall_s, write_s=_high(self._writes), step_s=step_s)
        choice = choose(
            costs,
            self._failures(),
            ranks=ranks,
            limits=self._limits,
            current=self._every,
            memory=self._outlived(),
        )
        return choice.steps, choice.why

    def _failures(self) -> Failures:
        now = self._clock()
        return faded([*spans_of(self._earlier()), (self._began, now, False)], now)

    def _outlived(self) -> Outlived:
        if not self._nodes_in_memory:
            return IN_NO_MEMORY
        seen, of = went_on_from_memory(self._earlier())
        return outlived(self._nodes_in_memory, seen=seen, of=of)

    def _earlier(self) -> list[dict[str, Any]]:
        if self._lines is None:
            self._lines = list(read_lines(self._attempts_log))
        return self._lines


def spans_of(lines: Sequence[dict[str, Any]]) -> list[tuple[float, float, bool]]:
    """(start, end, failed) of the attempts in attempts.jsonl that began to train."""
    return [
        (float(line["started"]), float(line["ended"]), _has_lost_work(line))
        for line in lines
        if line.get("started") is not None and line.get("ended") is not None
    ]


def went_on_from_memory(lines: Sequence[dict[str, Any]]) -> tuple[int, int]:
    """Failures after which the next attempt began later than at the newest checkpoint; of how many.

    The last attempt's successor is this one, which has no line yet.
    """
    failed = [
        (before, after)
        for before, after in pairwise(lines)
        if _has_lost_work(before) and after.get("from_step") is not None
    ]
    went_on = [a["from_step"] > b.get("checkpoint_step", 0) for b, a in failed]
    return sum(went_on), len(went_on)


def _has_lost_work(line: dict[str, Any]) -> bool:
    cause = line.get("cause")
    return cause in _OURS or (cause in _CUT_SHORT and line.get("exit_code") == Exit.FAILED)


def _high(values: Sequence[float]) -> float:
    """The 90th percentile: the writer must be free again nearly always."""
    ordered = sorted(values)
    return ordered[min(int(_P90 * len(ordered)), len(ordered) - 1)]
