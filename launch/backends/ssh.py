"""Hosts reached by ssh; a driver on this machine carries the run."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, JobState, Submission, spec_of
from launch.ending import say_ending, typed_name
from launch.liveness import is_alive, is_elsewhere, read_mark
from launch.processes import send
from launch.ranks_spec import RANKS_FILE, WORKER, spec_text
from launch.ssh.hosts import hosts_of
from launch.ssh.preflight import check
from trainer.config.sections.ssh import SshLaunch
from trainer.errors import Exit
from trainer.plan import RunPlan, plan_of_attempt
from trainer.records.run_files import AttemptFiles, RunFiles

DRIVER_LOG = "driver.log"  # under the run's folder
_BEGIN_S = 60.0  # for the driver to take the attempt


@dataclass(frozen=True)
class SshBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "ssh"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        argv = ("python", "-m", "launch.driver", run_folder, "--attempt", str(plan.attempt))
        return Submission(
            argv=argv, files={RANKS_FILE: spec_text(spec_of(plan, module=self.module))}
        )

    def preflight(self, plan: RunPlan) -> None:
        for line in check(plan):
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        files = RunFiles(run_folder).attempt(attempt)
        launch = plan_of_attempt(files).config.launch
        assert isinstance(launch, SshLaunch)
        if launch.foreground:
            return _stay(run_folder, attempt)
        log = run_folder / DRIVER_LOG
        with log.open("ab") as output:
            log.chmod(0o600)
            process = subprocess.Popen(
                [sys.executable, *submission.argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        code = _until_taken(process, files)
        if code is not None:
            print(log.read_text(encoding="utf-8", errors="replace")[-4000:], file=sys.stderr)
            return code
        print(_handed_over(files, process.pid, hosts_of(launch), log))
        return Exit.DONE

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        return [_job(files) for files in attempts]

    def stop(self, files: AttemptFiles) -> None:
        """The driver looks for stop.json, wherever it runs; a signal makes it look at once."""
        mark = read_mark(files.agent)
        if mark is not None and not is_elsewhere(mark) and is_alive(mark):
            send(mark.pid, signal.SIGTERM)


def _stay(run_folder: Path, attempt: int) -> int:
    from launch.driver import drive
    from launch.driving.places import place_of

    run = RunFiles(run_folder)
    nodes, env = place_of(run.attempt(attempt))
    code = drive(run, attempt, nodes, env=env).exit_code
    say_ending(run, run.attempt(attempt), code)
    return code


def _until_taken(process: subprocess.Popen[bytes], files: AttemptFiles) -> int | None:
    """None once the driver has the attempt, or did its work already; its code if it failed."""
    deadline = time.monotonic() + _BEGIN_S
    while time.monotonic() < deadline:
        mark = read_mark(files.agent)
        if mark is not None and mark.pid == process.pid:
            return None
        if (code := process.poll()) is not None:
            return code or None
        time.sleep(0.02)
    process.kill()
    return Exit.FAILED


def _handed_over(files: AttemptFiles, pid: int, hosts: Sequence[str], log: Path) -> str:
    run = files.root.parent.parent
    name = typed_name(RunFiles(run))
    return (
        f"{run.name}: attempt {files.number} begins on {', '.join(hosts)}, carried by process "
        f"{pid} of this machine, which logs to {log}\n"
        f"  longhaul status {name}   longhaul logs {name} -f   longhaul stop {name}"
    )


def _job(files: AttemptFiles) -> Job:
    mark = read_mark(files.agent)
    if mark is None:
        return Job(JobState.ENDED)
    if is_elsewhere(mark):
        return Job(JobState.UNKNOWN, f"its driver is on {mark.host}")
    if is_alive(mark):
        return Job(JobState.RUNNING, f"process {mark.pid} on {mark.host}")
    return Job(JobState.ENDED)
