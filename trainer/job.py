"""The live parts of a run on one rank, and what of it must survive a restart."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from trainer.batch import Batch
from trainer.best import Best
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.heartbeat import Pulse
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.guard.guard import Guard
from trainer.guard.incident import Incidents
from trainer.meter import Meter
from trainer.observers.base import Observer
from trainer.records.attempt import Done
from trainer.reports import EvalReport, SaveReport, StepReport, UploadReport
from trainer.tasks.base import Task


class Stream(Protocol):
    """This rank's endless source of micro-batches; a pure function of the step."""

    def step(self, step: int) -> Sequence[Batch]: ...
    def close(self) -> None: ...

    def cursor(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps; small, equal on all ranks."""

    def go_back(self, cursor: dict[str, Any], *, without: tuple[int, int]) -> None:
        """Stand where `cursor` says; the samples [start, stop) are not read again."""


class Eval(Protocol):
    """At steps of its own and at the last one. `run` is collective."""

    def due(self, step: int) -> bool: ...
    def run(self, world: World, engine: Engine, step: int) -> EvalReport: ...


class StopFlag(Protocol):
    def is_set(self) -> bool: ...


@dataclass(frozen=True)
class Every:
    """Due at multiples of `steps`; never when `steps` is 0."""

    steps: int

    def due(self, step: int) -> bool:
        return self.steps > 0 and step % self.steps == 0

    def observe(self, report: SaveReport) -> SaveReport:
        """Nothing follows from it."""
        return report

    def saved(self) -> dict[str, Any] | None:
        return None


class SaveTimes(Protocol):
    """When to save: `Every` so many steps, or trainer/cadence.py. The same on all ranks."""

    def due(self, step: int) -> bool: ...

    def observe(self, report: SaveReport) -> SaveReport:
        """A save has ended; the report as observers get it. Called by all ranks together."""

    def saved(self) -> dict[str, Any] | None:
        """What a later attempt needs to know of it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Built once, in build.py; never mutated."""

    world: World
    engine: Engine
    task: Task
    stream: Stream
    checkpoints: CheckpointStore
    stop: StopFlag  # set by the signal handlers of worker.py
    total_steps: int
    save: SaveTimes
    evals: Sequence[Eval]
    observers: Sequence[Observer]  # rank 0 only; empty elsewhere
    learning_rate: Callable[[int], float]  # step -> rate; pure, so there is nothing to resume
    seed_step: Callable[[int, int], None]  # (step, first sample of the micro-batch) -> reseed
    meter: Meter
    pulse: Pulse  # read from outside the rank
    guard: Guard
    incidents: Incidents
    best: Best = field(default_factory=partial(Best, None))  # of its evaluations
    pause_at: int = 0  # evaluate, save and stop after this step; 0: never

    def pauses_at(self, step: int) -> bool:
        return 0 < step == self.pause_at


@dataclass
class TrainState:
    """All that must survive a restart, except what engine, guard and the data's cursor hold."""

    step: int = 0
    tokens_seen: int = 0
    last_loss: float | None = None
    updates: int = 0  # steps that were applied

    def advance(self, report: StepReport) -> None:
        self.step = report.step
        self.tokens_seen = report.tokens_seen
        self.updates += report.applied
        if math.isfinite(report.loss):
            self.last_loss = report.loss

    def go_back(self, other: TrainState) -> None:
        self.step, self.tokens_seen = other.step, other.tokens_seen
        self.last_loss, self.updates = other.last_loss, other.updates


def training_of(job: Job, state: TrainState) -> dict[str, Any]:
    """What a checkpoint's manifest holds of the loop; `restored` reads it back."""
    return {
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "last_loss": state.last_loss,
        "updates": state.updates,
        "cursor": job.stream.cursor(state.step),
        "guard": job.guard.saved(),
        "save": job.save.saved(),
        "best": job.best.saved(),
        "best_step": job.best.step,  # retention keeps it
        "needed_before": job.guard.first_anomaly,  # retention keeps a step older than this one
    }


def restored(training: dict[str, Any]) -> TrainState:
    step = training["step"]
    return TrainState(
        step, training["tokens_seen"], training["last_loss"], training.get("updates", step)
    )


def done_of(job: Job, state: TrainState) -> Done:
    """What rank 0 writes down where training has ended."""
    step, said = job.best.result, job.best.said()
    return Done(time.time(), state.step, state.last_loss, best_step=step, said=said)


def tell_saved(job: Job, reports: Sequence[SaveReport]) -> None:
    for report in reports:
        seen = job.save.observe(report)
        for observer in job.observers:
            observer.on_save(seen)


def tell_uploaded(job: Job, reports: Sequence[UploadReport]) -> None:
    for report in reports:
        for observer in job.observers:
            observer.on_upload(report)


def wind_up(job: Job, step: int) -> None:
    """After training: wait, not for ever, for the last uploads, then close. Collective."""
    beat = partial(job.pulse.beat, "end", step)
    beat()
    tell_uploaded(job, job.checkpoints.drain_uploads(job.world, beat))
    job.checkpoints.close(for_good=True)
    job.engine.close()
