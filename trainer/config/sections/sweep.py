"""The section `sweep` of `longhaul sweep`: what is searched, how, and what it may cost.

It is no part of a run's settings: a trial is a run like any other, and knows of no sweep.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

Count = Annotated[int, Field(ge=0)]


class ConditionalSection(Section):
    when: str  # key=value of an alternative in the space
    space: Annotated[tuple[str, ...], Field(min_length=1)]  # searched only then


class PrunerSection(Section):
    kind: Literal["none", "median", "asha", "halving", "hyperband", "pbt"]
    first_step: Annotated[int, Field(ge=1)]  # optimizer step of the first rung
    factor: Annotated[int, Field(ge=2)]  # rungs are that far apart, one in so many goes on
    min_trials: Annotated[int, Field(ge=1)]  # median: so many others must have been there


class BudgetSection(Section):
    gpu_hours: Annotated[float, Field(gt=0)] | None  # of all ranks together, CPU ranks too
    money: Annotated[float, Field(gt=0)] | None
    price: Annotated[float, Field(gt=0)] | None  # money for one rank and hour


class SweepSection(Section):
    # The folder under run.root; "-0001" follows in the names of its runs.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,57}$")]
    sampler: Literal["grid", "random", "tpe", "cmaes", "nsga2"]
    trials: Count  # 0: all of a grid
    seed: Annotated[int, Field(ge=0, lt=2**31)]
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]  # as metrics.jsonl calls them
    goals: tuple[Literal["min", "max"], ...]  # one a metric
    take: Literal["last", "best"]  # which value of a run counts
    generation: Count  # proposed at once, from all before; 0: as soon as there is room
    space: tuple[str, ...]  # as on the command line: key=1,2; key=interval(0,1)
    joint: dict[str, tuple[tuple[str, ...], ...]]  # name -> alternatives, each some key=value
    conditional: tuple[ConditionalSection, ...]
    pruner: PrunerSection
    concurrency: Annotated[int, Field(ge=1)]  # trials at a time
    retries: Count  # of a trial that something outside of it ended
    trial_hours: Annotated[float, Field(gt=0)] | None  # of one trial; then it is ended
    budget: BudgetSection
    # Seconds between looks at the trials; 0: 1 on this machine, 15 where a scheduler is asked.
    poll_s: Annotated[float, Field(ge=0, le=3600)]
