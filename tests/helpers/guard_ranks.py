"""What tests of the numerics guard run inside ranks: tiny runs in which something goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from trainer.batch import TokenBatch
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.errors import LonghaulError
from trainer.faultpoints import Drilled, Fault, arm
from trainer.guard.guard import Guard
from trainer.job import Job
from trainer.loop import fit
from trainer.plan import read_plan
from trainer.records.run_files import RunFiles
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport
from trainer.tasks.base import Task


@dataclass(frozen=True)
class Wanted:
    """One attempt of one run. `leave_out`: a step that is refused although nothing is wrong."""

    root: Path
    faults: Sequence[Fault] = ()
    leave_out: int = 0
    poisoned: tuple[int, int] = (0, 0)  # samples whose loss is tenfold
    disobeys: int = -1  # a rank that applies every step
    attempt: int = 1


@dataclass
class Seen:
    """What came of it, on one rank."""

    losses: list[float] = field(default_factory=list)
    applied: list[bool] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    tokens_seen: int = 0
    rates: list[float] = field(default_factory=list)
    guard: list[tuple[int, str, str, tuple[int, int]]] = field(default_factory=list)
    error: str = ""
    state: str = ""  # digest of this rank's masters and moments at the end
    cursor: dict[str, Any] = field(default_factory=dict)
    checkpoints: list[int] = field(default_factory=list)

    def on_step(self, report: StepReport) -> None:
        self.steps.append(report.step)
        self.losses.append(report.loss)
        self.applied.append(report.applied)
        self.rates.append(report.learning_rate)
        self.tokens_seen = report.tokens_seen

    def on_guard(self, report: GuardReport) -> None:
        self.guard.append((report.step, report.action, report.kind, report.samples))

    def on_eval(self, report: EvalReport) -> None: ...
    def on_upload(self, report: UploadReport) -> None: ...
    def on_save(self, report: SaveReport) -> None: ...
    def close(self) -> None: ...


class Poisoned:
    """A task in whose data some samples are far off."""

    def __init__(self, task: Task, samples: tuple[int, int]) -> None:
        self._task, self._samples = task, range(*samples)

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        loss = self._task.loss_sum(model, batch)
        return loss * 10 if any(s in self._samples for s in batch.sample_indices) else loss

    def score(self, model: torch.nn.Module, batch: TokenBatch) -> dict[str, float]:
        return self._task.score(model, batch)

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        return self._task.values(sums)


class LeavesOut(Guard):
    """Refuses one step whatever its numbers; or, for a planted fault, none at all."""

    step, number, none = 0, 0, False

    def wants(self, loss: float) -> Callable[[float], bool]:
        self.number += 1
        if self.none:
            return lambda norm: True
        return super().wants(loss) if self.number != self.step else lambda norm: False


def attempt_all(world: World, wanted: Sequence[Wanted]) -> list[Seen]:
    return [_attempt(world, one) for one in wanted]


def _attempt(world: World, wanted: Wanted) -> Seen:
    seen, run = Seen(), RunFiles(wanted.root)
    plan = read_plan(run.attempt(wanted.attempt).plan)
    stop = type("Never", (), {"is_set": lambda self: False})()
    job, state = build_job(plan, world, run=run, stop=stop, startup=StartUp())
    job = _changed(job, wanted, seen)
    arm(wanted.faults, rank=world.place.rank)
    try:
        fit(job, state)
    except (LonghaulError, Drilled) as e:
        seen.error = f"{type(e).__name__}: {e}"
    arm([], rank=0)
    digest = hashlib.sha256()
    for held in job.engine.fragments():
        digest.update(str(held.fragment).encode() + held.values.detach().numpy().tobytes())
    seen.state = digest.hexdigest()
    seen.cursor = job.stream.cursor(state.step)
    seen.checkpoints = job.checkpoints.steps()
    job.stream.close()
    job.checkpoints.close()
    job.engine.close()
    return seen


def _changed(job: Job, wanted: Wanted, seen: Seen) -> Job:
    guard = LeavesOut(job.guard._rules, job.guard.saved())
    guard.step = wanted.leave_out
    guard.none = wanted.disobeys == job.world.place.rank
    task = Poisoned(job.task, wanted.poisoned)
    return dataclasses.replace(job, observers=(seen,), guard=guard, task=task)
