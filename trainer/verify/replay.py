"""A step that went wrong, made again on one process: weights of the last checkpoint before it.

The plain engine gets the run's own settings and micro-batches, so that dropout and rounding are
those of the ranks but for the order of sums. Steps between checkpoint and incident are made again
from the stores; the incident's own rows come from its bundle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batch import Batch
from trainer.build import build_engine, starting_values
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.loading import load_step
from trainer.config.sections.training import PlainEngine
from trainer.data.stream import Stream
from trainer.data.table import open_sources, open_stream
from trainer.dist.device import choose_device
from trainer.dist.seeds import step_seeder
from trainer.dist.world import Alone, Place
from trainer.engine.base import Engine
from trainer.errors import Refused
from trainer.guard.incident import Incident, read_incident
from trainer.plan import RunPlan, stored_plan
from trainer.planning import make_plan
from trainer.records.json_file import read_lines
from trainer.records.run_files import RunFiles
from trainer.schedules import learning_rate
from trainer.storage.local import LocalStorage
from trainer.tasks.base import Task
from trainer.tasks.table import change_of, trained_task
from trainer.verify.cause import Evidence, Repetition, RowLoss
from trainer.verify.history import History, history_of
from trainer.verify.one_row import one_row

# Relative, of a loss: sums taken in another order, and what grows of it over a few steps.
_TOLERANCE = {"fp32": 1e-4}
_TOLERANCE_16_BIT = 2e-2
_CONTROL_ROWS = 8


@dataclass(frozen=True)
class Replay:
    """What was done. `base`: the checkpoint that it began with."""

    incident: Incident
    base: int
    evidence: Evidence


@dataclass(frozen=True)
class Standing:
    """One process that stands just before the incident's step."""

    engine: Engine
    task: Task
    plan: RunPlan
    stream: Stream[Any]


def replay(
    run: RunFiles,
    step: int,
    *,
    most_steps: int,
    log: Callable[[str], None],
    defaults: Mapping[str, Any] | None = None,
) -> Replay:
    """`defaults`: settings that a plan of an older version lacks.

    Raises: Refused if rows or a checkpoint before the step are missing; RunFolderError.
    """
    incident = read_incident(run.incidents, step)
    if not incident.is_whole:
        raise Refused(
            f"the incident of step {step} lacks rows of some ranks ({len(incident.by_rank)} of "
            f"{incident.shared['world_size']} files in {run.incidents.name}/step-{step:08d}), "
            "and all of them are needed to make the step again"
        )
    path = run.attempt(int(incident.shared["attempt"])).plan
    plan = _alone(stored_plan(path, defaults=defaults or {}))
    history = history_of(read_lines(run.metrics), step=step, time=float(incident.shared["time"]))
    base = _base(run, step, history.newest, most_steps=most_steps)
    precision = plan.config.precision.kind
    log(f"from step {base} to {step} on one process, {precision}")
    standing = _stand(run, plan, base, step, history)
    again = [_make(standing, incident) for _ in range(2)]
    rows, usual = list(_rows(standing, incident)), _control(standing)
    _leave(standing)
    in_fp32 = None
    if precision != "fp32":
        log("the same in fp32")
        standing = _stand(run, _in(plan, "fp32"), base, step, history)
        in_fp32 = _make(standing, incident)
        _leave(standing)
    evidence = Evidence(
        recorded=_recorded(incident),
        owners=[rank for rank, _ in _micro_steps(incident)],
        again=again,
        in_fp32=in_fp32 if in_fp32 is not None else again[0],
        rows=rows,
        usual=_usual(incident) if usual is None else usual,
        usual_was=usual is None,
        tolerance=_TOLERANCE.get(precision, _TOLERANCE_16_BIT),
    )
    return Replay(incident, base, evidence)


def _alone(plan: RunPlan) -> RunPlan:
    """The attempt's plan for one process; fp16 needs a loss scale, so it is repeated in fp32."""
    config = plan.config
    changed = config.model_copy(
        update={
            "engine": PlainEngine(kind="plain"),
            "resources": config.resources.model_copy(update={"nodes": 1, "ranks_per_node": 1}),
        }
    )
    alone = make_plan(
        changed,
        attempt=plan.attempt,
        run_id=plan.run_id,
        stores=plan.stores,
        device=plan.device,
        cores=plan.threads_per_rank,
        vocab_size_of_tokenizer=plan.vocab_size,
    )
    return _in(alone, "fp32") if config.precision.kind == "fp16" else alone


def _in(plan: RunPlan, kind: str) -> RunPlan:
    precision = plan.config.precision.model_copy(update={"kind": kind})
    return plan.model_copy(
        update={"config": plan.config.model_copy(update={"precision": precision})}
    )


def _base(run: RunFiles, step: int, newest: int | None, *, most_steps: int) -> int:
    """The newest checkpoint before `step`; 0, the starting values, if all steps are few enough.

    `newest`: later ones were written after the run had gone back, with other data.
    """
    steps = StepFolders(LocalStorage(), run.checkpoints).steps()
    limit = step - 1 if newest is None else newest
    base = max((s for s in steps if s <= limit), default=0)
    if step - 1 - base > most_steps:
        where = f"step {base} is the last checkpoint before it" if base else "none is before it"
        raise Refused(
            f"step {step} is {step - 1 - base} steps after a checkpoint ({where}); "
            f"--max-steps {step - 1 - base} makes them all again on one process"
        )
    return base


def _stand(run: RunFiles, plan: RunPlan, base: int, step: int, history: History) -> Standing:
    world = Alone(choose_device(plan.device, Place()))
    engine, task = build_engine(plan, world), trained_task(plan)
    cursor: dict[str, Any] | None = None
    if base:
        # Not through a store: that is an attempt's, and a later one may own the run by now.
        folders = StepFolders(LocalStorage(), run.checkpoints)
        cursor = load_step(world, engine, folders, step=base, run_hash=plan.run_id)["cursor"]
    else:
        engine.load(starting_values(plan, engine), step=0)
    stream = open_stream(
        plan, world, sources=open_sources(plan), cursor=cursor, change=change_of(plan)
    )
    standing = Standing(engine, task, plan, stream)
    for earlier in range(base + 1, step):
        for way in history.ways_back:
            if way.to == earlier - 1:
                stream.go_back(stream.cursor(way.to), without=(way.start, way.stop))
        batches = stream.step(earlier)
        _backward(standing, earlier, batches, weight=sum(b.terms for b in batches))
        engine.step(lr=_rate(plan, earlier), apply_if=_if_not_in(history.left_out, earlier))
    return standing


def _if_not_in(left_out: frozenset[int], step: int) -> Callable[[float], bool]:
    return lambda norm: step not in left_out


def _leave(standing: Standing) -> None:
    standing.stream.close()
    standing.engine.close()


def _make(standing: Standing, incident: Incident) -> Repetition:
    """Forward and backward of the step; nothing is applied, so it can be made again."""
    batches = [batch for _, batch in _batches(incident)]
    weight = float(incident.shared["terms"])
    shares = _backward(standing, incident.step, batches, weight=weight)
    stats = standing.engine.step(lr=0.0, apply_if=lambda _: False)
    return Repetition(sum(shares), stats.grad_norm, shares)


def _backward(
    standing: Standing, step: int, batches: Sequence[Batch], *, weight: float
) -> list[float]:
    """As in the step loop: shares of the step's mean loss."""
    engine, seed_step = standing.engine, step_seeder(standing.plan.config.run.seed)
    shares = []
    for number, batch in enumerate(batches):
        seed_step(step, batch.sample_indices[0] if batch.sample_indices else -1)
        loss = standing.task.loss_sum(engine.model, batch.to(engine.device)) / max(weight, 1.0)
        engine.accumulate(loss, last=number == len(batches) - 1)
        shares.append(float(loss.detach().double()))
    return shares


@torch.no_grad()
def _rows(standing: Standing, incident: Incident) -> Iterator[RowLoss]:
    """Each row's own mean loss, without dropout."""
    standing.engine.model.eval()
    for _, batch in _batches(incident):
        for row, sample in enumerate(batch.sample_indices):
            one = one_row(batch, row)
            loss = standing.task.loss_sum(standing.engine.model, one.to(standing.engine.device))
            [place] = standing.stream.places(sample, 1)
            origin = f"{place.source} row {place.row}, document {place.first_document}"
            yield RowLoss(sample, float(loss) / (one.terms or 1), origin)
    standing.engine.model.train()


@torch.no_grad()
def _control(standing: Standing) -> float | None:
    """Mean loss of held-out rows with the same weights; None if none are held out."""
    standing.engine.model.eval()
    loss = terms = 0.0
    for batch in standing.stream.held_out_batches(_CONTROL_ROWS):
        loss += float(
            standing.task.loss_sum(standing.engine.model, batch.to(standing.engine.device))
        )
        terms += batch.terms
    standing.engine.model.train()
    return loss / terms if terms else None


def _usual(incident: Incident) -> float:
    """Of the steps before it."""
    usual = incident.shared.get("usual_loss")
    return math.nan if usual is None else float(usual)


def _micro_steps(incident: Incident) -> Iterator[tuple[int, int]]:
    """(rank, its micro-step) in the order of the step's rows: all first micro-steps, then ..."""
    for number in range(max(len(steps) for steps in incident.by_rank.values())):
        for rank in sorted(incident.by_rank):
            if number < len(incident.by_rank[rank]):
                yield rank, number


def _batches(incident: Incident) -> Iterator[tuple[int, Batch]]:
    for rank, number in _micro_steps(incident):
        batch = incident.by_rank[rank][number].batch
        assert batch is not None, "checked by is_whole"
        yield rank, batch


def _recorded(incident: Incident) -> Repetition:
    shares = [incident.by_rank[rank][number].loss for rank, number in _micro_steps(incident)]
    return Repetition(incident.loss, incident.grad_norm, shares)


def _rate(plan: RunPlan, step: int) -> float:
    config = plan.config
    rate = learning_rate(
        config.schedule,
        config.optimizer.learning_rate,
        total_steps=config.steps.total,
        tokens_per_step=plan.tokens_per_step,
    )
    return rate(step)
