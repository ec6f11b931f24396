"""Hosts reached by ssh; a driver on this machine carries the run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, Submission
from launch.driving.detached import detach, job_of, render_driven, stay, stop_driver
from launch.node.ranks_spec import WORKER
from launch.ssh.hosts import hosts_of
from launch.ssh.preflight import check
from trainer.config.sections.ssh import SshLaunch
from trainer.plan import RunPlan, plan_of_attempt
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class SshBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "ssh"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        return render_driven(plan, run_folder=run_folder, module=self.module)

    def preflight(self, plan: RunPlan) -> None:
        for line in check(plan):
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        files = RunFiles(run_folder).attempt(attempt)
        plan = plan_of_attempt(files)
        launch = plan.config.launch
        assert isinstance(launch, SshLaunch)
        if launch.foreground:
            return stay(run_folder, attempt)
        return detach(files, submission.argv, where=where(hosts_of(launch), plan))

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        return [job_of(files) for files in attempts]

    def stop(self, files: AttemptFiles) -> None:
        stop_driver(files)


def where(hosts: Sequence[str], plan: RunPlan) -> str:
    """For people; which of them it will be is known once they were asked."""
    names, nodes = ", ".join(hosts), plan.config.resources.nodes
    return names if len(hosts) == nodes else f"{nodes} of {names}"
