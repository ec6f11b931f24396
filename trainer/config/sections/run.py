"""Who the run is and where it lives; how large it is; when things happen."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

NAME_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,63}$"


class RunSection(Section):
    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    root: str  # folder that holds run folders
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    trust: tuple[str, ...]  # Python packages whose classes the configuration may name


class ResourcesSection(Section):
    nodes: Annotated[int, Field(ge=1, le=1_000_000, examples=[1])]
    # go on with so few when others are lost; 0: with all
    min_nodes: Annotated[int, Field(ge=0, examples=[0])]
    ranks_per_node: Annotated[int, Field(ge=1, le=1_000_000, examples=[1])]
    device: Literal["auto", "cpu", "cuda"]  # auto: cuda where the node has it
    # 0: cores of the node / ranks_per_node; Linux knows no more CPUs than 8192
    threads_per_rank: Annotated[int, Field(ge=0, le=8192, examples=[0])]
    rendezvous_port: Annotated[int, Field(ge=0, lt=65536)]  # 0: a free one
    collective_timeout_s: Annotated[float, Field(gt=0, examples=[1800])]


class StepsSection(Section):
    """Units: optimizer steps; 0 means never (except total)."""

    total: Annotated[int, Field(ge=1, examples=[100])]
    # how often all rows are trained on, instead of `total`, which follows from it
    epochs: Annotated[float, Field(gt=0, le=1_000_000)] | None = None
    save_every: Annotated[int, Field(ge=0)] | Literal["auto"]  # auto: as often as pays best
    eval_every: Annotated[int, Field(ge=0)]
    log_every: Annotated[int, Field(ge=1)]
    pause_at: Annotated[int, Field(ge=0)] = 0  # stops there, evaluated and saved


class BatchSection(Section):
    """Units: rows of `data.sequence_length` tokens."""

    # rows of one optimizer step, whole world
    global_batch_size: Annotated[int, Field(ge=1, examples=[16])]
    # rows of one forward/backward on one rank
    micro_batch_size: Annotated[int, Field(ge=1, examples=[1])]


class ResumeSection(Section):
    mode: Literal["auto", "must", "never"]
    allow: tuple[str, ...]  # dotted settings that may differ from the stored run
    takeover: bool = False  # of one command, never stored: go on although somebody owns the run


class DrillsSection(Section):
    enabled: bool  # faults planned in LONGHAUL_DRILL happen; refused otherwise
