"""What is asked of Slurm. Sites differ in what they demand; conf/cluster/ holds their answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainer.config.sections.base import Section

MailType = Literal["BEGIN", "END", "FAIL", "REQUEUE", "TIME_LIMIT", "ALL"]


class ContainerSection(Section):
    kind: Literal["none", "pyxis", "apptainer"]
    image: str | None  # a name for pyxis (or a .sqsh file), a .sif file for apptainer
    mounts: tuple[str, ...]  # SOURCE:TARGET, both absolute
    python: str  # the interpreter in the image that has this package


class SlurmLaunch(Section):
    """Whatever is null is not asked for: the site's own default holds."""

    kind: Literal["slurm"]
    grace_s: Annotated[float, Field(gt=0)]  # from "save and stop" to SIGKILL
    account: str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    time_limit_h: Annotated[float, Field(gt=0)] | None = Field(examples=[12])
    gpus: Literal["gpus_per_node", "gres", "none"]  # how this site wants GPUs asked for
    gpu_type: str | None
    cpus_per_rank: Annotated[int, Field(ge=0)]  # 0: not asked for
    memory_gib: Annotated[float, Field(ge=0)] | None  # a node; 0: all of it
    exclusive: bool
    nodelist: str | None  # as Slurm writes them: gpu[01-16,20]
    exclude: str | None
    spare_nodes: Annotated[int, Field(ge=0)]  # nodes more than the ranks need, to go on at once
    mail_user: str | None
    mail_type: tuple[MailType, ...]
    modules: tuple[str, ...]
    setup_script: str | None  # sourced by the job's shell
    environment: tuple[str, ...]  # names that travel with the job; NCCL_* stands for all of them
    container: ContainerSection
    signal_lead_s: Annotated[int, Field(ge=60, le=65535)]
    requeue: bool
    chain: Annotated[int, Field(ge=1, le=1000)]  # one sbatch each, and Slurm keeps 10,000 in all
    array_limit: Annotated[int, Field(ge=0)]  # of the runs of one command; 0: all at once
    extra: tuple[str, ...]  # further options of sbatch: --switches=1
    test_only: bool
