"""The step loop. Everything that happens during a run happens in `fit`, in the order written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from trainer.batch import TokenBatch
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.heartbeat import Pulse
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import NonFiniteStep, SaveFailed
from trainer.faultpoints import at_step, faultpoint
from trainer.meter import Clock, Meter
from trainer.observers.base import Observer
from trainer.reports import EvalReport, SaveReport, StepReport
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
    pulse: Pulse  # read from outside the rank


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


@dataclass(frozen=True)
class Told:
    """What the ranks said to each other during a step; the same on all of them."""

    stop: bool  # some rank was told to stop
    written: bool  # every rank's part of the save under way has ended


def fit(job: Job, state: TrainState) -> Outcome:
    """Train from `state` to the end, or until told to stop. Collective."""
    for report, told in steps(job, state):
        state.advance(report)
        last = report.step == job.total_steps
        for observer in job.observers:
            observer.on_step(report)
        if told.written:
            _tell_saved(job, job.checkpoints.finish(job.world))
        if last or told.stop or job.save.due(report.step):
            _save(job, state, must=last or told.stop)
        if told.stop and not last:
            return "stopped"
        for evaluation in job.evals:
            if last or evaluation.due(report.step):
                _evaluate(job, evaluation, report.step)
    faultpoint("end.begin")
    return "finished"


def steps(job: Job, state: TrainState) -> Iterator[tuple[StepReport, Told]]:
    """One report per optimizer step after `state.step`, and what the ranks said meanwhile."""
    batches = job.stream.step(state.step + 1)
    terms, tokens = job.world.sum(_counts(batches))
    for step in range(state.step + 1, job.total_steps + 1):
        at_step(step)
        faultpoint("step.begin")
        clock = Clock()
        lr = job.learning_rate(step)
        loss_sum = _gradients(job, step, batches, weight=terms, clock=clock)
        job.pulse.beat("data", step)
        faultpoint("data.read")
        upcoming = job.stream.step(step + 1) if step < job.total_steps else ()
        clock.data_s = clock.lap()
        job.pulse.beat("agree", step)
        faultpoint("step.agree")
        loss, told, (next_terms, next_tokens) = _agree(job, loss_sum, upcoming)
        job.pulse.beat("update", step)
        faultpoint("step.update")
        stats = job.engine.step(lr=lr)
        clock.update_s = clock.lap()
        if stats.applied and not math.isfinite(loss + stats.grad_norm):
            raise NonFiniteStep(
                f"step {step}: loss {loss}, gradient norm {stats.grad_norm}; it was not applied: "
                "lower optimizer.learning_rate or look at the data of this step"
            )
        faultpoint("step.end")
        report = job.meter.report(
            step,
            loss=loss,
            learning_rate=lr,
            stats=stats,
            terms=terms,
            tokens=tokens,
            tokens_before=state.tokens_seen,
            clock=clock,
        )
        yield report, told
        batches, terms, tokens = upcoming, next_terms, next_tokens


def _gradients(
    job: Job, step: int, batches: Sequence[TokenBatch], *, weight: float, clock: Clock
) -> float:
    """Forward and backward of this rank's micro-steps; its share of the step's mean loss.

    The gradient is that of the mean over every term of the step: `weight` (its terms over all
    ranks) is known before the first backward, so rows of unequal length count by their terms and
    the result does not depend on how the step was cut up.
    """
    engine = job.engine
    local_loss = torch.zeros((), dtype=torch.float64, device=engine.device)
    for micro_step, batch in enumerate(batches):
        job.pulse.beat("forward", step)
        job.seed_step(step, batch.sample_indices[0] if batch.sample_indices else -1)
        loss = job.task.loss_sum(engine.model, batch.to(engine.device)) / max(weight, 1.0)
        clock.forward_s += clock.lap()
        faultpoint("step.forward")
        job.pulse.beat("backward", step)
        engine.accumulate(loss, last=micro_step == len(batches) - 1)
        local_loss += loss.detach()
        clock.backward_s += clock.lap()
        faultpoint("step.backward")
    share = local_loss.item()  # the step's one host sync besides the gradient norm
    clock.backward_s += clock.lap()
    return share


def _agree(
    job: Job, loss_sum: float, upcoming: Sequence[TokenBatch]
) -> tuple[float, Told, tuple[float, float]]:
    """The step's one small collective of our own, before its update.

    Its loss, what each rank was told, and the counts of the NEXT step, which the stream has read.
    """
    mine = [loss_sum, float(job.stop.is_set()), float(job.checkpoints.written())]
    loss, stop, written, *counts = job.world.sum([*mine, *_counts(upcoming)])
    told = Told(stop=stop > 0, written=written == job.world.place.world_size)
    return loss, told, (counts[0], counts[1])


def _counts(batches: Sequence[TokenBatch]) -> tuple[int, int]:
    return sum(b.terms for b in batches), sum(b.tokens for b in batches)


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
    """Begin a save, and end it too where training ends; a failed one is survived. Collective.

    Raises: SaveFailed if it `must` succeed and does not, TooManyFailedSaves from the store.
    """
    job.pulse.beat("save", state.step)
    faultpoint("save.begin")
    training, step = _training(job, state), state.step
    if not must:
        begun = job.checkpoints.begin(job.world, job.engine, step=step, training=training)
        _tell_saved(job, begun)
        return
    _tell_saved(job, job.checkpoints.drain(job.world))
    report = job.checkpoints.save(job.world, job.engine, step=step, training=training)
    _tell_saved(job, [report])
    if not report.succeeded:
        raise SaveFailed(f"the save at step {step}, the last one, failed: {report.problem}")


def _tell_saved(job: Job, reports: Sequence[SaveReport]) -> None:
    for report in reports:
        for observer in job.observers:
            observer.on_save(report)


def _evaluate(job: Job, evaluation: Eval, step: int) -> None:
    job.pulse.beat("eval", step)
    faultpoint("eval.begin")
    report = evaluation.run(job.world, job.engine, step)
    for observer in job.observers:
        observer.on_eval(report)
