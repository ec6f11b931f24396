"""Trials without processes: what runs would have reported, on a clock that is turned by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.compose import compose
from launch.sweep.budget import Budget
from launch.sweep.grammar import space_of
from launch.sweep.journal import Journal, Trial
from launch.sweep.place import How, Seen
from launch.sweep.rungs import Points
from launch.sweep.samplers import sampler_of
from launch.sweep.sweeper import Sweeper
from trainer.config.sections.sweep import SweepSection
from trainer.config.sweep_settings import validate_sweep
from trainer.errors import ConfigError, Problem, Refused

Curve = Callable[[Trial, int], float]


def section(*overrides: str, **values: Any) -> SweepSection:
    """conf/sweep with overrides, then with single settings replaced."""
    return validate_sweep(compose(overrides, config_name="sweep").values["sweep"] | values)


def curve_of_learning_rate(trial: Trial, step: int) -> float:
    """Falls to how far the trial's x is from 2; the best is the best at every step."""
    return (float(trial.overrides[0].partition("=")[2]) - 2.0) ** 2 + 10.0 / step


class Killed(BaseException):
    """The sweeper is killed: nothing is caught, nothing written."""


@dataclass
class Recorded:
    """Runs of `last_step` steps of one second each on `ranks` ranks, a value every `every` steps.

    They outlive a sweeper as real ones do: several of them may be handed the same place. `script`:
    how a trial's first, second ... start ends, after half of what is left to do.
    """

    curve: Curve = curve_of_learning_rate
    last_step: int = 100
    every: int = 10
    ranks: int = 2
    grace_s: float = 3.0
    metric: str = "eval_loss"
    script: Mapping[int, Sequence[tuple[How, str]]] = field(default_factory=dict)
    refuses: str = ""
    speed: Mapping[int, float] = field(default_factory=dict)  # steps a second, 1 if not said
    kill_at: float | None = None
    kill_on_stop: bool = False  # before a run hears of it
    pauses: bool = True  # at the step where it is to; a run that was killed just there goes past it
    deaf: int = 0  # so many words to stop are refused
    forgetful: int = 0  # ... are taken, and forgotten by a run that begins anew
    stop_at: float | None = None
    clock: float = 0.0
    starts: list[int] = field(default_factory=list)
    steps: dict[int, float] = field(default_factory=dict)
    cost: dict[int, float] = field(default_factory=dict)
    most_active: int = 0
    stopped: int = 0  # words to stop
    _active: dict[int, Trial] = field(default_factory=dict)
    _pause_at: dict[int, int] = field(default_factory=dict)
    _leaves_at: dict[int, float] = field(default_factory=dict)
    _ended: dict[int, Seen] = field(default_factory=dict)

    def start(self, trial: Trial, *, pause_at: int = 0) -> None:
        if self.refuses:
            raise ConfigError([Problem("optimizer", self.refuses, "")])
        assert trial.number not in self._active, "started twice"
        self.starts.append(trial.number)
        if trial.parent and trial.number not in self.steps:
            self.steps[trial.number] = self.steps[trial.parent]
        self._pause_at[trial.number] = pause_at if self.pauses else 0
        self._ended.pop(trial.number, None)
        self._active[trial.number] = trial
        self.most_active = max(self.most_active, len(self._active))

    def fork(self, trial: Trial) -> None:
        self.steps[trial.number] = self.steps[trial.parent]

    def stop(self, trial: Trial) -> None:
        if self.kill_on_stop:
            self.kill_on_stop = False
            raise Killed
        self.stopped += 1
        if self.deaf:
            self.deaf -= 1
            raise Refused("the scheduler does not answer")
        if self.forgetful:
            self.forgetful -= 1
            return
        if trial.number in self._active:
            self._leaves_at.setdefault(trial.number, self.clock + self.grace_s)

    def look(self, trials: Sequence[Trial]) -> list[Seen]:
        return [self._seen(trial.number) for trial in trials]

    def points(self, trial: Trial, metric: str) -> Points:
        done = int(self.steps.get(trial.number, 0))
        known = range(self.every, done + 1, self.every)
        return [(step, self.curve(trial, step)) for step in known] if metric == self.metric else []

    def reported(self, trial: Trial, metric: str) -> list[str]:
        return [self.metric] if self.steps.get(trial.number, 0) >= self.every else []

    def wait(self, seconds: float) -> bool:
        for _ in range(round(seconds)):
            self.clock += 1.0
            for number in list(self._active):
                self._second(number)
        if self.kill_at is not None and self.clock >= self.kill_at:
            self.kill_at = None
            raise Killed
        return self.stop_at is not None and self.clock >= self.stop_at

    @property
    def spent(self) -> float:
        return sum(self.cost.values())

    def _second(self, number: int) -> None:
        self.cost[number] = self.cost.get(number, 0.0) + self.ranks
        leaving = number in self._leaves_at
        if not leaving:
            done = self.steps.get(number, 0.0) + self.speed.get(number, 1.0)
            self.steps[number] = min(done, self._pause_at[number] or done, self.last_step)
        tries = self.starts.count(number)
        planned = self.script.get(number, ())
        if leaving and self.clock >= self._leaves_at[number]:
            self._leave(number, "stopped", "stopped (user)")
        elif tries <= len(planned) and self._is_time(number, planned[tries - 1][0], tries):
            self._leave(number, *planned[tries - 1])
        elif self.steps[number] == self._pause_at[number]:
            self._leave(number, "paused", "stopped (user)")
        elif not leaving and self.steps[number] >= self.last_step:
            self._leave(number, "finished", "")

    def _is_time(self, number: int, how: How, tries: int) -> bool:
        return how == "later" or self.steps[number] >= self.last_step * tries / 4

    def _leave(self, number: int, how: How, why: str) -> None:
        del self._active[number]
        self._leaves_at.pop(number, None)
        self._ended[number] = Seen(how, why, self.cost[number])

    def _seen(self, number: int) -> Seen:
        if number in self._active:
            cost, has_heard = self.cost.get(number, 0.0), number in self._leaves_at
            return Seen("active", rank_seconds=cost, has_heard=has_heard)
        return self._ended.get(number, Seen("again", "nothing was started"))


def sweeper(
    folder: Path, place: Recorded, *searched: str, total: int = 0, **values: Any
) -> Sweeper:
    """On a journal in `folder`, as a new process would make it."""
    settings = section(**{"poll_s": 1.0, **values})
    space = space_of(settings, searched or ("x=interval(0,4)",))
    budget = Budget.of(settings, ranks=place.ranks, grace_s=place.grace_s)
    return Sweeper(
        section=settings,
        space=space,
        sampler=sampler_of(settings, space),
        journal=Journal(folder / "trials.jsonl"),
        place=place,
        budget=budget,
        total=total or settings.trials,
        last_step=place.last_step,
    )


def pruner(
    kind: str, *, first_step: int = 10, factor: int = 3, min_trials: int = 3
) -> dict[str, Any]:
    return {"kind": kind, "first_step": first_step, "factor": factor, "min_trials": min_trials}


def money(gpu_hours: float | None = None, **values: Any) -> dict[str, Any]:
    return {"gpu_hours": gpu_hours, "money": None, "price": None, **values}
