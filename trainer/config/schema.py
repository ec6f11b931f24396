"""All settings of a run, resolved and closed. The union of the sections, nothing else."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from trainer.config.sections.base import Section
from trainer.config.sections.data import DataSection
from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.guard import GuardSection
from trainer.config.sections.launch import Launch
from trainer.config.sections.model import Model
from trainer.config.sections.regularize import RegularizeSection
from trainer.config.sections.restart import RestartSection
from trainer.config.sections.run import (
    BatchSection,
    DrillsSection,
    ResourcesSection,
    ResumeSection,
    RunSection,
    StepsSection,
)
from trainer.config.sections.tasks import Task
from trainer.config.sections.training import Engine, Optimizer, PrecisionSection, Schedule
from trainer.config.sections.watch import WatchSection
from trainer.config.sections.watching import CheckpointSection, EvalsSection, ObserversSection


def _data_kind(value: Any) -> str:
    """Text says no kind: it had none before there were examples, and runs of then go on."""
    kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
    return "text" if kind is None else str(kind)


Data = Annotated[
    Annotated[DataSection, Tag("text")] | Annotated[ExamplesSection, Tag("examples")],
    Discriminator(_data_kind),
]


class Config(Section):
    """What the user asked for: conf/ composed with overrides, every value decided."""

    run: RunSection
    resources: ResourcesSection
    steps: StepsSection
    batch: BatchSection
    model: Model
    task: Task
    data: Data
    optimizer: Optimizer
    regularize: RegularizeSection
    schedule: Schedule
    engine: Engine
    precision: PrecisionSection
    checkpoint: CheckpointSection
    guard: GuardSection
    evals: EvalsSection
    observers: ObserversSection
    resume: ResumeSection
    launch: Launch
    restart: RestartSection
    watch: WatchSection
    drills: DrillsSection
