"""The observers section -> observers: which class stands behind which setting."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from trainer.observers.aside import Aside
from trainer.observers.base import Observer
from trainer.observers.guarded import Guarded
from trainer.observers.jsonl import JsonLines
from trainer.observers.sampled import Sampled
from trainer.plan import RunPlan
from trainer.records.lineage import branches
from trainer.records.redact import redactor_of
from trainer.records.run_files import RunFiles

_CLOSE_S = 30.0  # W&B may upload so long; less than ranks get to leave after the first one left


def observers_of(
    plan: RunPlan, run: RunFiles, *, first_step: int, facts: Mapping[str, Any]
) -> list[Observer]:
    """For rank 0. All are guarded but metrics.jsonl: without the truth a run should stop.

    `facts` open the attempt in metrics.jsonl; `first_step` is the first one it will do.
    """
    section, every = plan.config.observers, plan.config.steps.log_every
    metrics = JsonLines(run.metrics, attempt=plan.attempt, attempt_facts=facts)
    found: list[Observer] = [Sampled(metrics, every=every)]
    if section.console.enabled:
        show = Guarded("console", partial(_console, plan, first_step, facts))
        found.append(Sampled(show, every=every))
    if section.tensorboard.enabled:
        found.append(Sampled(_aside("tensorboard", partial(_tensorboard, run)), every=every))
    if section.wandb.mode != "off":
        found.append(Sampled(_aside("wandb", partial(_wandb, plan, run)), every=every))
    if section.profiler.first_step:
        found.append(Guarded("profiler", partial(_profiler, plan, run, first_step)))
    return found


def _aside(name: str, make: Callable[[], Observer]) -> Observer:
    return Aside(name, partial(Guarded, name, make), close_s=_CLOSE_S)


# Imported when made: each of them has a vendor that costs time.


def _console(plan: RunPlan, first_step: int, facts: Mapping[str, Any]) -> Observer:
    from trainer.observers.console import make_console

    config = plan.config
    engine = facts.get("engine", config.engine.kind)
    headline = (
        f"{config.run.name}: steps {first_step} to {config.steps.total}, "
        f"{_count(plan.num_parameters)} parameters, {engine} {config.precision.kind}, "
        f"{plan.world_size} x {plan.device}, {plan.tokens_per_step:,} tokens a step"
    )
    return make_console(
        name=config.run.name,
        first_step=first_step,
        total_steps=config.steps.total,
        headline=headline,
    )


def _tensorboard(run: RunFiles) -> Observer:
    from trainer.observers.tensorboard import TensorBoard

    return TensorBoard(run.tensorboard)


def _wandb(plan: RunPlan, run: RunFiles) -> Observer:
    from trainer.observers.wandb import Wandb

    section = plan.config.observers.wandb
    return Wandb(
        run.wandb,
        mode="online" if section.mode == "online" else "offline",
        run_id=plan.run_id,
        name=plan.config.run.name,
        project=section.project,
        entity=section.entity,
        tags=(*section.tags, *branches(run.lineage)),
        attempt=plan.attempt,
        config=plan.config.model_dump(mode="json"),
        redactor=redactor_of(os.environ),
        group=section.group,
    )


def _profiler(plan: RunPlan, run: RunFiles, first_step: int) -> Observer:
    from trainer.observers.profiler import Profiler

    section = plan.config.observers.profiler
    return Profiler(
        run.profile,
        first_step=section.first_step,
        num_steps=section.num_steps,
        next_step=first_step,
    )


def _count(number: int) -> str:
    return f"{number / 1e6:,.1f} M" if number >= 100_000 else f"{number:,}"
