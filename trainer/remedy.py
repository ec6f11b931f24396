"""What is done when a step's numbers cannot be right: note it, go back past it, or end the run.

checkpoint 40    41 42 43  44*  45  46*  47*      * not applied; the third one asks to go back
     ^                      '---- left out ---'
     '-- loaded again; step 41 on, and step 44 reads what came after 47's samples
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.batch import Batch
from trainer.engine.base import StepStats
from trainer.errors import DamagedCheckpoint, NonFiniteStep
from trainer.guard.guard import Rewound, Verdict
from trainer.job import Job, TrainState, restored, tell_saved
from trainer.reports import GuardReport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a step was made of. `losses`: of this rank's micro-steps, shares of `loss`."""

    step: int
    loss: float  # all ranks
    learning_rate: float
    terms: float
    batches: Sequence[Batch]
    losses: Sequence[float]


def note(job: Job, made: Made, stats: StepStats) -> Verdict:
    """What became of the step; an incident is written down, observers are told. Not collective.

    Raises: NonFiniteStep if the run cannot go on.
    """
    verdict = job.guard.note(made.step, made.loss, stats)
    if verdict.anomaly is None:
        return verdict
    if verdict.bundle:
        numbers = {
            "kind": verdict.anomaly.kind,
            "said": verdict.anomaly.said,
            "action": verdict.action,
            "loss": made.loss,
            "grad_norm": stats.grad_norm,
            "learning_rate": made.learning_rate,
            "terms": made.terms,
            "usual_loss": job.guard.usual_loss,
            "world_size": job.world.place.world_size,
            "checkpoint_step": max(_older(job, made.step), default=0),
        }
        job.incidents.write(made.step, numbers, batches=made.batches, losses=made.losses)
    _tell(job, made.step, verdict, loss=made.loss, grad_norm=stats.grad_norm)
    if verdict.action == "stop":
        raise NonFiniteStep(_why_stopped(job, made.step, verdict))
    return verdict


def go_back(job: Job, state: TrainState, verdict: Verdict) -> None:
    """Load the newest checkpoint older than the first anomaly; its data are left out. Collective.

    Raises: NonFiniteStep if there is no such checkpoint.
    """
    at, first = state.step, verdict.first
    job.pulse.beat("load", at)
    tell_saved(job, job.checkpoints.drain(job.world))
    start, stop = (job.stream.cursor(s)["next_sample"] for s in (first - 1, at))
    training = _load_older(job, first)
    if training is None:
        raise NonFiniteStep(
            f"{_why(at, verdict)} No checkpoint is older than step {first}, the first of them, so "
            "there is nothing to go back to: lower optimizer.learning_rate, or save more often "
            f"(steps.save_every){causes_told(job.incidents.run_name, at, verdict)}"
        )
    to = restored(training)
    why = f"given up: step {first} went wrong, and the run goes on from step {to.step} without it"
    job.checkpoints.set_aside(job.world, after=to.step, why=why)
    job.stream.go_back(training["cursor"], without=(start, stop))
    done = Rewound(at=at, to=to.step, first=first, start=start, stop=stop)
    job.guard.rewound(training.get("guard"), done)
    job.best.go_back(training.get("best"))
    state.go_back(to)
    assert verdict.anomaly is not None
    report = GuardReport(
        step=at,
        action="rewind",
        kind=verdict.anomaly.kind,
        said=f"back to step {to.step}; samples {start} to {stop - 1} are left out from now on",
        loss=None,
        grad_norm=None,
        skipped=job.guard.state.skipped,
        to_step=to.step,
        samples=(start, stop),
    )
    for observer in job.observers:
        observer.on_guard(report)


def take_best(job: Job, state: TrainState) -> None:
    """Load the best step's weights where training has ended, if evaluations decide. Collective.

    A checkpoint of it that is gone or damaged is said; then the last step is the result.
    """
    best = job.best.step
    if best is None or best == state.step:
        return
    if best in job.world.lead(job.checkpoints.steps):
        try:
            job.checkpoints.load(job.world, job.engine, step=best)
            return
        except DamagedCheckpoint:
            pass  # all ranks raised alike
        job.checkpoints.load(job.world, job.engine, step=state.step)
    job.best.gone = True
    if job.world.place.rank == 0:
        _log.warning("%s", f"no whole checkpoint of step {best}, the best one, is left")


def _older(job: Job, first: int) -> list[int]:
    return [step for step in job.checkpoints.steps() if step < first]


def _load_older(job: Job, first: int) -> dict[str, Any] | None:
    """Training state of the newest whole checkpoint older than `first`; the engine has the rest."""
    for step in reversed(job.world.lead(lambda: _older(job, first))):
        try:
            return job.checkpoints.load(job.world, job.engine, step=step)
        except DamagedCheckpoint:
            continue  # all ranks raised alike; the next load fills the engine anew
    return None


def _tell(job: Job, step: int, verdict: Verdict, *, loss: float, grad_norm: float) -> None:
    assert verdict.anomaly is not None
    said = verdict.anomaly.said
    if verdict.new_level:
        said = f"{said}; so many in a row that this is what is usual from here on"
    elif verdict.action == "rewind":
        said = f"{said}; the last of several since step {verdict.first}"
    start, stop = (job.stream.cursor(s)["next_sample"] for s in (step - 1, step))
    report = GuardReport(
        step=step,
        action="log" if verdict.action == "log" else "skip",
        kind=verdict.anomaly.kind,
        said=said,
        loss=loss,
        grad_norm=grad_norm,
        skipped=job.guard.state.skipped,
        samples=(start, stop),
    )
    for observer in job.observers:
        observer.on_guard(report)


def _why(step: int, verdict: Verdict) -> str:
    assert verdict.anomaly is not None
    return f"step {step}: {verdict.anomaly.said}; it was not applied."


def _why_stopped(job: Job, step: int, verdict: Verdict) -> str:
    rewinds = job.guard.state.rewinds
    tried = ""
    if rewinds:
        last = rewinds[-1]
        tried = (
            f" Going back did not help ({len(rewinds)} times, last from step {last.at} to "
            f"{last.to}, without samples {last.start} to {last.stop - 1})."
        )
    return (
        f"{_why(step, verdict)}{tried} Lower optimizer.learning_rate or look at the data of this "
        f"step{causes_told(job.incidents.run_name, step, verdict)}"
    )


def causes_told(run: str, step: int, verdict: Verdict) -> str:
    """What tells the causes apart: nothing, where no record of the step was kept."""
    if not verdict.bundle:
        return "; no record of it was kept for longhaul replay (guard.max_incidents)"
    return f"; longhaul replay {run} --step {step} tells data, numeric and hardware causes apart"
