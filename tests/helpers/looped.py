"""Trials that run at once in this process, through the real loop, store and forks, on two weights.

The task is the mean of noisy targets: a large learning rate comes near them soon and then follows
the noise, a small one does neither. So the best setting is another one later in the run.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from launch.run.forking import fork
from launch.run.run_folder import create, read_record
from launch.sweep.folder import SweepFiles
from launch.sweep.journal import Trial
from launch.sweep.place import Seen
from launch.sweep.rungs import Points
from tests.helpers.guards import guard_rules
from trainer.batch import TokenBatch
from trainer.checkpoint.store import CheckpointStore
from trainer.config.sections.training import PrecisionSection
from trainer.dist.device import Peak
from trainer.dist.heartbeat import NoPulse
from trainer.dist.world import Alone, World
from trainer.engine.base import Engine
from trainer.engine.plain import PlainEngine
from trainer.guard.guard import Guard
from trainer.guard.incident import Incidents
from trainer.job import Every, Job, TrainState, restored
from trainer.loop import fit
from trainer.meter import Meter
from trainer.reports import EvalReport
from trainer.tasks.base import Task

_TARGET = 1000.0
_NOISE = 60.0


@dataclass(frozen=True)
class Noisy:
    """A stream: one row a step, the target and noise that (seed, step) decides."""

    seed: int

    def step(self, step: int) -> Sequence[TokenBatch]:
        chance = random.Random(f"{self.seed}/{step}")
        values = [round(_TARGET + chance.gauss(0.0, _NOISE)) for _ in range(2)]
        row = torch.tensor([values])
        return [TokenBatch(row, row, row, (step - 1,), terms=1, tokens=2)]

    def cursor(self, step: int) -> dict[str, Any]:
        return {"next_sample": step}

    def go_back(self, cursor: dict[str, Any], *, without: tuple[int, int]) -> None:
        raise AssertionError("nothing here asks for it")

    def close(self) -> None:
        """Nothing is open."""


class Distance:
    """The squared distance of the weights to the row."""

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        (weights,) = model.parameters()
        return (weights - batch.inputs_RT.float()).square().sum()


@dataclass
class FromTarget:
    """An evaluation: how far the weights are from where there is no noise."""

    found: dict[int, float] = field(default_factory=dict)

    def due(self, step: int) -> bool:
        return False  # where it pauses, and at the end

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        with torch.no_grad():
            (weights,) = engine.model.parameters()
            self.found[step] = float((weights - _TARGET).square().sum())
        return EvalReport(step=step, values={"eval_loss": self.found[step]}, seconds=0.0)


def job_of(folder: Path, *, rate: float, seed: int, last_step: int, run_id: str) -> Job:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    task: Task = Distance()  # type: ignore[assignment]
    return Job(
        world=Alone(),
        engine=PlainEngine(
            lambda: model,
            lambda named: torch.optim.SGD([p for _, p in named], lr=rate),
            device=torch.device("cpu"),
            precision=PrecisionSection(kind="fp32", accumulate_in="fp32"),
            max_grad_norm=0.0,
        ),
        task=task,
        stream=Noisy(seed),
        checkpoints=CheckpointStore(folder / "checkpoints", run_hash=run_id, max_failed_saves=1),
        stop=_Never(),
        total_steps=last_step,
        save=Every(0),
        evals=(FromTarget(),),
        observers=(),
        learning_rate=lambda step: rate,
        seed_step=lambda step, sample: None,
        meter=Meter(
            flops_per_token=1.0,
            peak=Peak(0.0, "unknown"),
            row_tokens_per_step=2,
            memory_bytes=lambda: 1,
            world_size=1,
        ),
        pulse=NoPulse(),
        guard=Guard(guard_rules(non_finite="stop", spike="ignore")),
        incidents=Incidents(folder / "incidents", 0, {}),
    )


class _Never:
    def is_set(self) -> bool:
        return False


@dataclass
class Looped:
    """A place. `seed`: of the noise. Each start trains to its pause before it returns."""

    files: SweepFiles
    seed: int
    last_step: int
    steps_made: int = 0
    _seen: dict[int, Seen] = field(default_factory=dict)
    _points: dict[int, dict[int, float]] = field(default_factory=dict)

    def start(self, trial: Trial, *, pause_at: int = 0) -> None:
        run = self.files.run(trial.number)
        if not run.run_json.exists():
            create(self.files.runs, config=self._config(trial), frozen_hash="same")
        rate = float(trial.overrides[0].partition("=")[2])
        run_id = read_record(run).run_id
        job = job_of(run.root, rate=rate, seed=self.seed, last_step=self.last_step, run_id=run_id)
        job = replace(job, pause_at=pause_at)
        loaded = job.checkpoints.load_latest(job.world, job.engine)
        state = restored(loaded) if loaded is not None else TrainState()
        before = state.step
        outcome = fit(job, state)
        self.steps_made += state.step - before
        assert state.step == (pause_at or self.last_step), "it went where it was to"
        (evaluation,) = job.evals
        assert isinstance(evaluation, FromTarget)
        self._points.setdefault(trial.number, {}).update(evaluation.found)
        how = "finished" if outcome == "finished" else "paused"
        self._seen[trial.number] = Seen(how, rank_seconds=float(state.step))  # type: ignore[arg-type]

    def fork(self, trial: Trial) -> None:
        fork(self.files.run(trial.parent), config=self._config(trial), frozen_hash="same")

    def _config(self, trial: Trial) -> dict[str, Any]:
        return {"run": {"root": str(self.files.runs), "name": self.files.run_name(trial.number)}}

    def stop(self, trial: Trial) -> None:
        raise AssertionError("nobody is told: they leave by themselves")

    def look(self, trials: Sequence[Trial]) -> list[Seen]:
        return [self._seen[trial.number] for trial in trials]

    def points(self, trial: Trial, metric: str) -> Points:
        return sorted(self._points.get(trial.number, {}).items())

    def reported(self, trial: Trial, metric: str) -> list[str]:
        return ["eval_loss"]

    def wait(self, seconds: float) -> bool:
        return False
