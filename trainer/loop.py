"""The step loop. Everything that happens during a run happens in `fit`, in the order written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import add
from typing import Literal

import torch

from trainer.batch import Batch
from trainer.errors import ReplicasDiffer, SaveFailed
from trainer.faultpoints import at_step, faultpoint
from trainer.guard import damage
from trainer.guard.guard import APPLIED, Verdict
from trainer.guard.replicas import check_replicas
from trainer.job import Eval, Job, TrainState, tell_saved, tell_uploaded, training_of
from trainer.meter import Clock
from trainer.remedy import Made, go_back, note, take_best
from trainer.reports import StepReport

Outcome = Literal["finished", "stopped", "paused"]


@dataclass(frozen=True)
class Told:
    """What the ranks know of each other and of a step; the same on all of them."""

    stop: bool  # some rank was told to stop
    written: bool  # every rank's part of the save under way has ended
    kept: tuple[float, float]  # ranks whose part of the state in memory has ended; has ended well
    verdict: Verdict = APPLIED  # of the numerics guard, about the step


def fit(job: Job, state: TrainState) -> Outcome:
    """Train from `state` to the end, until told to stop, or to where it is to pause. Collective."""
    job.checkpoints.prepare(job.world, job.engine)
    _catch_up(job, state)
    going = steps(job, state)
    while not job.best.over and (now := next(going, None)) is not None:
        report, told = now
        state.advance(report)
        for observer in job.observers:
            observer.on_step(report)
        tell_uploaded(job, job.checkpoints.uploaded())
        if told.written:
            tell_saved(job, job.checkpoints.finish(job.world))
        if told.verdict.action == "rewind":
            go_back(job, state, told.verdict)
            _catch_up(job, state)
            going = steps(job, state)
            if told.stop:
                return "stopped"  # nothing happened since that checkpoint
            continue
        last = state.step == job.total_steps
        pauses = job.pauses_at(state.step) and not last
        _keep(job, state, told)
        saved = last or pauses or told.stop or job.save.due(state.step)
        if saved:
            _save(job, state, must=last or pauses or told.stop)
        if told.stop and not (last or pauses):
            return "stopped"
        _evaluate(job, state.step)
        if job.best.over or (job.best.step == state.step and not saved):
            _save(job, state, must=job.best.over)
        if pauses and not job.best.over:
            return "paused"
    take_best(job, state)
    faultpoint("end.begin")
    return "finished"


def steps(job: Job, state: TrainState) -> Iterator[tuple[StepReport, Told]]:
    """One report per optimizer step after `state.step`, and what the ranks said meanwhile."""
    batches = job.stream.step(state.step + 1)
    terms, tokens = job.world.sum(_counts(batches))
    applied = True
    for step in range(state.step + 1, job.total_steps + 1):
        at_step(step)
        faultpoint("step.begin")
        clock = Clock()
        lr = job.learning_rate(step)
        losses = _gradients(job, step, batches, weight=terms, clock=clock)
        job.pulse.beat("data", step)
        faultpoint("data.read")
        upcoming = job.stream.step(step + 1) if step < job.total_steps else ()
        clock.data_s = clock.lap()
        job.pulse.beat("agree", step)
        faultpoint("step.agree")
        loss, told, (next_terms, next_tokens) = _agree(job, losses, upcoming, applied=applied)
        job.pulse.beat("update", step)
        faultpoint("step.update", partial(damage.in_weights, job.engine))
        if job.guard.replicas_due(step):
            check_replicas(job.world, job.engine.replicated(), step=step)
        stats = job.engine.step(lr=lr, number=step, apply_if=job.guard.wants(loss))
        clock.update_s = clock.lap()
        faultpoint("step.end")
        applied = stats.applied
        made = Made(
            step=step, loss=loss, learning_rate=lr, terms=terms, batches=batches, losses=losses
        )
        verdict = note(job, made, stats)
        report = job.meter.report(
            step,
            loss=loss,
            learning_rate=lr,
            stats=stats,
            terms=terms,
            tokens=tokens,
            tokens_before=state.tokens_seen,
            skipped=job.guard.state.skipped,
            clock=clock,
        )
        yield report, replace(told, verdict=verdict)
        batches, terms, tokens = upcoming, next_terms, next_tokens


def _gradients(
    job: Job, step: int, batches: Sequence[Batch], *, weight: float, clock: Clock
) -> list[float]:
    """Forward and backward of this rank's micro-steps; their shares of the step's mean loss.

    The gradient is that of the mean over every term of the step: `weight` (its terms over all
    ranks) is known before the first backward, so rows of unequal length count by their terms and
    the result does not depend on how the step was cut up.
    """
    engine = job.engine
    losses = []
    for micro_step, batch in enumerate(batches):
        job.pulse.beat("forward", step)
        job.seed_step(step, batch.sample_indices[0] if batch.sample_indices else -1)
        loss = job.task.loss_sum(engine.model, batch.to(engine.device)) / (weight or 1.0)
        clock.forward_s += clock.lap()
        faultpoint("step.forward", partial(damage.in_loss, loss))
        faultpoint("step.gradient", partial(damage.in_gradient, engine))
        job.pulse.beat("backward", step)
        engine.accumulate(loss, last=micro_step == len(batches) - 1)
        losses.append(loss.detach().double())
        clock.backward_s += clock.lap()
        faultpoint("step.backward")
    # the step's one host sync besides the gradient norm
    shares: list[float] = torch.stack(losses).tolist() if losses else []
    clock.backward_s += clock.lap()
    return shares


def _agree(
    job: Job, losses: Sequence[float], upcoming: Sequence[Batch], *, applied: bool
) -> tuple[float, Told, tuple[float, float]]:
    """The step's one small collective of our own, before its update.

    Its loss, what each rank was told, and the counts of the NEXT step, which the stream has read.
    `applied`: whether this rank applied the step before, which all ranks must agree on.
    Raises: ReplicasDiffer if they do not: from there on they train different models.
    """
    flags = [float(job.stop.is_set()), float(job.checkpoints.written()), float(applied)]
    flags += job.checkpoints.said()
    share = reduce(add, losses, 0.0)  # not sum: Python 3.12 rounds it otherwise than 3.11
    mine = [share, *flags, *_counts(upcoming)]
    loss, stop, written, updated, ended, well, *counts = job.world.sum(mine)
    size = job.world.place.world_size
    if updated not in (0, size):
        raise ReplicasDiffer(
            f"{updated:.0f} of {size} ranks applied the step before this one, the others did not: "
            "they came to different gradient norms; a restart goes on from the last checkpoint"
        )
    told = Told(stop=stop > 0, written=written == size, kept=(ended, well))
    return loss, told, (counts[0], counts[1])


def _counts(batches: Sequence[Batch]) -> tuple[float, int]:
    return sum(b.terms for b in batches), sum(b.tokens for b in batches)


def _keep(job: Job, state: TrainState, told: Told) -> None:
    """The state of this step in memory, if that is due: it costs a copy, and nobody waits."""
    if told.stop or state.step == job.total_steps or job.pauses_at(state.step):
        return  # it is saved at once
    training, step = partial(training_of, job, state), state.step
    job.checkpoints.keep(job.world, job.engine, step=step, told=told.kept, training=training)


def _save(job: Job, state: TrainState, *, must: bool) -> None:
    """Begin a save, and end it too where training ends; a failed one is survived. Collective.

    Raises: SaveFailed if it `must` succeed and does not, TooManyFailedSaves from the store,
    ReplicasDiffer if the ranks do not hold the same weights: no such state is written.
    """
    job.pulse.beat("save", state.step)
    faultpoint("save.begin")
    training, step = training_of(job, state), state.step
    if job.guard.checks_replicas:
        check_replicas(job.world, job.engine.replicated(), step=step)
    if not must:
        begun = job.checkpoints.begin(job.world, job.engine, step=step, training=training)
        tell_saved(job, begun)
        return
    tell_saved(job, job.checkpoints.drain(job.world))
    report = job.checkpoints.save(job.world, job.engine, step=step, training=training)
    tell_saved(job, [report])
    if not report.succeeded:
        raise SaveFailed(f"the save at step {step}, the last one, failed: {report.problem}")


def _evaluate(job: Job, step: int) -> None:
    """All evaluations that are due, and what follows for the run's end. Collective."""
    ends = step == job.total_steps or job.pauses_at(step)
    for evaluation in job.evals:
        if ends or evaluation.due(step):
            _run(job, evaluation, step)


def _run(job: Job, evaluation: Eval, step: int) -> None:
    job.pulse.beat("eval", step)
    faultpoint("eval.begin")
    report = evaluation.run(job.world, job.engine, step)
    for observer in job.observers:
        observer.on_eval(report)
    if job.best.decides and (value := job.best.value_of(report.values)) is not None:
        job.best.judge(step, job.world.lead(lambda: value))


def _catch_up(job: Job, state: TrainState) -> None:
    """Evaluations that decide, of the step that training goes on from: its checkpoint was written
    before they were made. Collective."""
    if not job.best.has_judged(state.step):
        _evaluate(job, state.step)
