"""The step loop. Everything that happens during a run happens in `fit`, in the order written."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from trainer.batch import TokenBatch
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.device import Peak
from trainer.dist.world import World
from trainer.engine.base import Engine, StepStats
from trainer.errors import NonFiniteStep, SaveFailed
from trainer.observers.base import Observer
from trainer.reports import EvalReport, StepReport
from trainer.tasks.base import Task

Outcome = Literal["finished", "stopped"]


class Stream(Protocol):
    """This rank's endless source of micro-batches; a pure function of the step."""

    def step(self, step: int) -> Sequence[TokenBatch]: ...
    def close(self) -> None: ...

    def cursor(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps; small, equal on all ranks."""


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


@dataclass(frozen=True, kw_only=True)
class Meter:
    """The constants that turn seconds into rates."""

    flops_per_token: float
    peak: Peak  # of one rank; 0 FLOP/s where it is not known
    row_tokens_per_step: int
    memory_bytes: Callable[[], int]


@dataclass(frozen=True, kw_only=True)
class Job:
    """The live parts of one run on one rank. Built once, in build.py; never mutated."""

    world: World
    engine: Engine
    task: Task
    stream: Stream
    checkpoints: CheckpointStore
    stop: StopFlag  # set by the signal handlers of worker.py
    total_steps: int
    save: Every
    evals: Sequence[Eval]
    observers: Sequence[Observer]  # rank 0 only; empty elsewhere
    learning_rate: Callable[[int], float]  # step -> rate; pure, so there is nothing to resume
    seed_step: Callable[[int, int], None]  # (step, first sample of the micro-batch) -> reseed
    meter: Meter


@dataclass
class TrainState:
    """All that must survive a restart, except what the engine and the stream's cursor hold."""

    step: int = 0
    tokens_seen: int = 0
    last_loss: float | None = None

    def advance(self, report: StepReport) -> None:
        self.step = report.step
        self.tokens_seen = report.tokens_seen
        self.last_loss = report.loss


def fit(job: Job, state: TrainState) -> Outcome:
    """Train from `state` to the end, or until told to stop. Collective."""
    for report, stopping in steps(job, state):
        state.advance(report)
        last = report.step == job.total_steps
        for observer in job.observers:
            observer.on_step(report)
        if last or stopping or job.save.due(report.step):
            _save(job, state, must=last or stopping)
        if stopping and not last:
            return "stopped"
        for evaluation in job.evals:
            if last or evaluation.due(report.step):
                _evaluate(job, evaluation, report.step)
    return "finished"


def steps(job: Job, state: TrainState) -> Iterator[tuple[StepReport, bool]]:
    """One report per optimizer step after `state.step`, and whether any rank was told to stop.

    A step takes one small collective of our own: its loss, its counts and the stop flag travel
    with the number of terms of the NEXT step, which the stream has already read.
    """
    batches = job.stream.step(state.step + 1)
    terms, tokens = job.world.sum(_counts(batches))
    for step in range(state.step + 1, job.total_steps + 1):
        clock = _Clock()
        lr = job.learning_rate(step)
        loss_sum, stats = train_step(job, step, batches, weight=terms, lr=lr, clock=clock)
        clock.lap()
        upcoming = job.stream.step(step + 1) if step < job.total_steps else ()
        clock.data_s = clock.lap()
        loss, told, next_terms, next_tokens = job.world.sum(
            [loss_sum, float(job.stop.is_set()), *_counts(upcoming)]
        )
        if stats.applied and not math.isfinite(loss + stats.grad_norm):
            raise NonFiniteStep(
                f"step {step}: loss {loss}, gradient norm {stats.grad_norm}; it was not applied: "
                "lower optimizer.learning_rate or look at the data of this step"
            )
        yield _report(job, state, step, loss, lr, stats, clock, terms, tokens), told > 0
        batches, terms, tokens = upcoming, next_terms, next_tokens


def train_step(
    job: Job, step: int, batches: Sequence[TokenBatch], *, weight: float, lr: float, clock: _Clock
) -> tuple[float, StepStats]:
    """One optimizer update whose gradient is that of the mean over every term of the step.

    `weight` (terms of the step over all ranks) is known before the first backward, so rows of
    unequal length count by their terms and the result does not depend on how the step was cut up.
    Returns this rank's share of the step's mean loss.
    """
    engine = job.engine
    local_loss = torch.zeros((), dtype=torch.float64, device=engine.device)
    for micro_step, batch in enumerate(batches):
        job.seed_step(step, batch.sample_indices[0] if batch.sample_indices else -1)
        loss = job.task.loss_sum(engine.model, batch.to(engine.device)) / max(weight, 1.0)
        clock.forward_s += clock.lap()
        engine.accumulate(loss, last=micro_step == len(batches) - 1)
        local_loss += loss.detach()
        clock.backward_s += clock.lap()
    stats = engine.step(lr=lr)
    share = local_loss.item()  # the step's one host sync besides the gradient norm
    clock.update_s = clock.lap()
    return share, stats


class _Clock:
    """Seconds of a step by phase, as the host sees them."""

    def __init__(self) -> None:
        self.started = self._last = time.perf_counter()
        self.data_s = self.forward_s = self.backward_s = self.update_s = 0.0

    def lap(self) -> float:
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return passed


def _counts(batches: Sequence[TokenBatch]) -> tuple[int, int]:
    return sum(b.terms for b in batches), sum(b.tokens for b in batches)


def _report(
    job: Job,
    state: TrainState,
    step: int,
    loss: float,
    lr: float,
    stats: StepStats,
    clock: _Clock,
    terms: float,
    tokens: float,
) -> StepReport:
    step_s = time.perf_counter() - clock.started
    rate = tokens / step_s
    peak = job.meter.peak.flops * job.world.place.world_size
    return StepReport(
        step=step,
        loss=loss,
        learning_rate=lr,
        grad_norm=stats.grad_norm,
        applied=stats.applied,
        terms=int(terms),
        tokens=int(tokens),
        row_tokens=job.meter.row_tokens_per_step,
        tokens_seen=state.tokens_seen + int(tokens),
        step_s=step_s,
        data_s=clock.data_s,
        forward_s=clock.forward_s,
        backward_s=clock.backward_s,
        update_s=clock.update_s,
        tokens_per_second=rate,
        mfu=job.meter.flops_per_token * rate / peak if peak else 0.0,
        memory_bytes=job.meter.memory_bytes(),
    )


def _training(job: Job, state: TrainState) -> dict[str, Any]:
    """What a checkpoint's manifest holds of the loop; `restored` reads it back."""
    return {
        "step": state.step,
        "tokens_seen": state.tokens_seen,
        "last_loss": state.last_loss,
        "cursor": job.stream.cursor(state.step),
    }


def restored(training: dict[str, Any]) -> TrainState:
    return TrainState(training["step"], training["tokens_seen"], training["last_loss"])


def _save(job: Job, state: TrainState, *, must: bool) -> None:
    """One save; a failed one is survived, but not where training ends. Collective.

    Raises: SaveFailed if it `must` succeed, TooManyFailedSaves from the store.
    """
    training = _training(job, state)
    report = job.checkpoints.save(job.world, job.engine, step=state.step, training=training)
    for observer in job.observers:
        observer.on_save(report)
    if must and not report.succeeded:
        raise SaveFailed(f"the save at step {report.step}, the last one, failed: {report.problem}")


def _evaluate(job: Job, evaluation: Eval, step: int) -> None:
    report = evaluation.run(job.world, job.engine, step)
    for observer in job.observers:
        observer.on_eval(report)
