"""A mapping becomes a SweepSection, or an error with every problem: where, what, what to type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from trainer.config.names import nearest_setting
from trainer.config.sections.sweep import SweepSection
from trainer.errors import ConfigError, Problem

_MULTI = ("tpe", "nsga2", "random", "grid")


def validate_sweep(values: Mapping[str, Any]) -> SweepSection:
    """`values`: of the section alone. Raises: ConfigError with every problem."""
    try:
        section = SweepSection.model_validate(dict(values))
    except ValidationError as e:
        raise ConfigError([_problem(one) for one in e.errors(include_url=False)]) from None
    found = list(_problems(section))
    if found:
        raise ConfigError(found)
    return section


def _problem(detail: ErrorDetails) -> Problem:
    where = ".".join(["sweep", *(str(part) for part in detail["loc"])])
    if detail["type"] == "extra_forbidden":
        near = nearest_setting(where, list(_settings(SweepSection, "sweep")))
        hint = f"; did you mean {near}?" if near else ""
        return Problem(where, f"unknown setting{hint}", f"{near}=..." if near else "")
    if detail["type"] == "missing":
        return Problem(where, "has no value and needs one", f"{where}=...")
    reason = detail["msg"][:1].lower() + detail["msg"][1:]
    return Problem(where, f"{reason}, not {detail['input']!r}", "")


def _settings(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            yield from _settings(inner, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}"


def _problems(section: SweepSection) -> Iterator[Problem]:
    """What no single setting can say."""
    metrics, goals, kind = section.metrics, section.goals, section.sampler
    if len(metrics) != len(goals):
        what = f"{len(goals)} for {len(metrics)} metrics; each needs min or max"
        yield Problem("sweep.goals", what, f"sweep.goals=[{','.join(['min'] * len(metrics))}]")
    if len(set(metrics)) != len(metrics):
        yield Problem("sweep.metrics", "names a metric twice", f"sweep.metrics=[{metrics[0]}]")
    if len(metrics) > 1 and kind not in _MULTI:
        yield Problem("sweep.sampler", f"{kind} follows one metric only", "sweep.sampler=tpe")
    if len(metrics) > 1 and section.pruner.kind != "none":
        what = "several metrics do not say which trial is behind"
        yield Problem("sweep.pruner.kind", what, "sweep.pruner.kind=none")
    if section.trials == 0 and kind != "grid":
        yield Problem("sweep.trials", f"{kind} does not end by itself", "sweep.trials=20")
    if section.pruner.kind in ("halving", "hyperband", "pbt") and section.generation:
        what = "proposes the trials of a bracket first, and compares them rung by rung"
        what = f"{section.pruner.kind} {what}"
        yield Problem("sweep.generation", what, "sweep.generation=0")
    if section.pruner.kind == "pbt":
        yield from _population(section)
    yield from _budget(section)


def _population(section: SweepSection) -> Iterator[Problem]:
    if section.sampler not in ("random", "grid"):
        what = f"{section.sampler} learns from whole trials, and those of pbt are parts"
        yield Problem("sweep.sampler", what, "sweep.sampler=random")
    if section.conditional:
        what = "pbt moves every setting on its own, so none may depend on another"
        yield Problem("sweep.conditional", what, "sweep.conditional=[]")


def _budget(section: SweepSection) -> Iterator[Problem]:
    budget = section.budget
    if budget.money is not None and budget.price is None:
        what = "money needs the price of one rank and hour"
        yield Problem("sweep.budget.price", what, "sweep.budget.price=2.5")
