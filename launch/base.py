"""What a backend is: a pure rendering of a plan, and a small act of handing it over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.node.ranks_spec import WORKER, RanksSpec
from launch.run.budgets import RestartRules
from launch.run.job_record import Job as Job
from launch.run.job_record import JobState as JobState
from launch.watch.limits import WatchRules
from trainer.config.watch_rules import LEAD_S
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles

_STATE_BYTES = 12  # of a parameter: fp32 weight and two moments
_NOT_OF_RULES = {"lease_s", "smaller_micro_batch"}  # of the section `restart`
_SLOW_DISK = 20e6  # bytes a second that the slowest load is allowed


@dataclass(frozen=True)
class Submission:
    """Everything a backend would write and run, as data. Printed by `--dry-run`, golden-tested."""

    argv: tuple[str, ...]  # "python" stands for the interpreter that runs the command
    then: tuple[tuple[str, ...], ...] = ()  # commands after it, each once the one before succeeded
    files: Mapping[str, str] = field(default_factory=dict)  # path under the attempt -> contents
    env: Mapping[str, str] = field(default_factory=dict)


def spec_of(plan: RunPlan, *, module: str = WORKER) -> RanksSpec:
    resources = plan.config.resources
    return RanksSpec(
        module=module,
        nodes=plan.world_size // resources.ranks_per_node,  # fewer than are wanted, at times
        ranks_per_node=resources.ranks_per_node,
        device=plan.device,
        threads_per_rank=plan.threads_per_rank,
        rendezvous_port=resources.rendezvous_port,
        grace_s=plan.config.launch.grace_s,
        most_nodes=resources.nodes,
        least_nodes=resources.min_nodes,
        lease_s=plan.config.restart.lease_s,
        restart=RestartRules(**plan.config.restart.model_dump(exclude=_NOT_OF_RULES)),
        watch=_watch_rules(plan),
    )


def _watch_rules(plan: RunPlan) -> WatchRules:
    """Each rank loads its share of weights and moments, from a disk that may be slow."""
    section, world_size = plan.config.watch, plan.world_size
    slowest_load_s = plan.num_parameters * _STATE_BYTES / world_size / _SLOW_DISK
    timeout_s = plan.config.resources.collective_timeout_s
    given = section.model_dump() | {"load_s": max(section.load_s, round(slowest_load_s, 1))}
    return WatchRules(**given, ceiling_s=timeout_s - section.grace_s - LEAD_S)


class Backend(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def in_foreground(self) -> bool:
        """Whether `submit` returns when the run has ended, not when it was handed over."""

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        """Pure: no clock, no environment, no file system, no network."""

    def preflight(self, plan: RunPlan) -> None:
        """Raises: Refused if this place cannot run the plan. Before anything is written."""

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Hand it over; the exit code of the command (in the foreground: of the run)."""

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        """How each stands, in their order; one question to the place for all of them."""

    def stop(self, files: AttemptFiles) -> None:
        """Ask for "save and stop"; stop.json says already who asked. Asking twice is no error.

        Raises: Refused if it cannot be asked from here.
        """
