"""This machine, in the foreground."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, Submission, spec_of
from launch.machine import check_devices, free_port
from launch.node.processes import send
from launch.node.ranks_spec import RANKS_FILE, WORKER, spec_text
from launch.run.liveness import is_alive, is_elsewhere, job_of_mark, read_mark
from trainer.errors import ConfigError, Problem, Refused
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class LocalBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "local"
    in_foreground: bool = True

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        argv = ("python", "-m", "launch.agent", run_folder, "--attempt", str(plan.attempt))
        return Submission(
            argv=argv, files={RANKS_FILE: spec_text(spec_of(plan, module=self.module))}
        )

    def preflight(self, plan: RunPlan) -> None:
        """Raises: ConfigError for more machines than this one; Refused for more ranks than devices,
        a port taken.
        """
        resources = plan.config.resources
        if resources.nodes > 1:  # `longhaul plan` answers for any number of machines
            what = f"{resources.nodes} machines, but launch=local starts ranks on this one only"
            raise ConfigError([Problem("resources.nodes", what, "resources.nodes=1")])
        check_devices(plan.device, ranks_per_node=resources.ranks_per_node)
        free_port(resources.rendezvous_port)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Run to the end, in this process: argv says the same as a command of its own."""
        from launch.agent import carry

        del submission  # its files are in the attempt's folder; the agent reads them there
        return carry(RunFiles(run_folder), attempt).exit_code

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        return [job_of_mark(files.agent, who="agent") for files in attempts]

    def stop(self, files: AttemptFiles) -> None:
        mark = read_mark(files.agent)
        if mark is None:
            return
        if is_elsewhere(mark):
            run = files.root.parent.parent.name
            raise Refused(f"{run} runs on {mark.host}; stop it there")
        if is_alive(mark):
            send(mark.pid, signal.SIGTERM)
