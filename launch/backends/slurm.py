"""A Slurm cluster: the job script is rendered, judged, handed over, asked about and stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from launch.base import Job, JobState, Submission, spec_of
from launch.node.ranks_spec import RANKS_FILE, WORKER, spec_text
from launch.run.ended import Ended, write_ended
from launch.run.job_record import JobRecord, read_job, write_job
from launch.run.lease import read_beat
from launch.slurm.client import ask, plain_environment
from launch.slurm.preflight import check, refuse_without_slurm
from launch.slurm.queue import look_up, newest
from launch.slurm.script import OUTPUT, render
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles, RunFiles

SCRIPT = "submission/job.sbatch"  # under the attempt's folder
_ALWAYS = ("PATH", "HOME", "USER", "SLURM_CONF", "SLURM_CLUSTERS")  # sbatch itself needs them


@dataclass(frozen=True)
class SlurmBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "slurm"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        launch = _section(plan)
        script = f"{run_folder}/attempts/{plan.attempt:04d}/{SCRIPT}"
        argv = ["sbatch", "--parsable", "--export=ALL", script, "python"]
        spec = spec_of(plan, module=self.module)
        files = {RANKS_FILE: spec_text(spec), SCRIPT: render(plan, run_folder=run_folder)}
        env = dict.fromkeys(launch.environment, "(yours)")
        return Submission(argv=tuple(argv), files=files, env=env)

    def preflight(self, plan: RunPlan) -> None:
        """Raises: Refused if Slurm is not here or would not take the job; ConfigError for what the
        partition cannot give."""
        refuse_without_slurm()
        launch = _section(plan)
        folder = str(Path(plan.config.run.root) / plan.config.run.name)
        script = render(plan, run_folder=folder)
        said = check(plan, launch, script=script, env=_environment(launch))
        if launch.test_only:
            print(f"{said or 'Slurm takes the job'}\nnothing was written or queued")

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Raises: Refused if Slurm does not take it."""
        run = RunFiles(run_folder)
        files = run.attempt(attempt)
        argv = [sys.executable if word == "python" else word for word in submission.argv]
        env = chosen(os.environ, submission.env)
        ids: list[str] = []
        cluster = ""
        for _ in range(_chain(files)):
            after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
            answer = ask([argv[0], *after, *argv[1:]], env=env)
            if answer.code != 0:
                _withdraw(files, ids)
                raise Refused(f"sbatch did not take the job: {answer.why}")
            job, _, cluster = answer.out.strip().partition(";")
            ids.append(job)
            write_job(files, JobRecord(self.name, ids[0], cluster, tuple(ids[1:])))
        files.agent.unlink(missing_ok=True)  # this process; the job names its own
        print(submitted_text(run, ids))
        return 0

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        records = [read_job(files) for files in attempts]
        known = look_up(each for record in records if record for each in record.jobs)
        return [
            newest(record.jobs, known) if record else Job(JobState.UNKNOWN, "no job is recorded")
            for record in records
        ]

    def stop(self, files: AttemptFiles) -> None:
        record = read_job(files)
        if record is None:
            return
        for each in reversed(record.jobs):  # the last of a chain first: none begins meanwhile
            answer = ask(["scancel", "--state=PENDING", each])
            if answer.code is None:
                raise Refused(f"{files.root.parent.parent.name} cannot be stopped: {answer.why}")
        (job,) = self.jobs([files])
        if job.state is JobState.RUNNING and files.ended.exists():
            name = files.root.parent.parent.name
            raise Refused(f"{name} begins its next attempt now: longhaul stop {name} once more")
        if job.state is JobState.RUNNING:
            for each in record.jobs:
                ask(["scancel", "--signal=TERM", each])
        elif read_beat(files) is None and not files.ended.exists():
            write_ended(files.ended, Ended(time=time.time(), codes={}))


def submitted_text(run: RunFiles, ids: Sequence[str]) -> str:
    many = f"jobs {', '.join(ids)} are queued, one after another" if len(ids) > 1 else ""
    said = many or f"job {ids[0]} is queued"
    where = f"{run.root}/{OUTPUT.replace('%j', ids[0])}"
    return f"{run.name}: {said}; watch it with longhaul status {run.root}, its words are in {where}"


def chosen(env: Mapping[str, str], patterns: Mapping[str, str]) -> dict[str, str]:
    """The variables that travel: sbatch gets no others, so neither does the job."""
    wanted = (*_ALWAYS, *patterns)
    return plain_environment(
        {
            name: value
            for name, value in env.items()
            if any(name == one or ("*" in one and fnmatchcase(name, one)) for one in wanted)
        }
    )


def _environment(launch: SlurmLaunch) -> dict[str, str]:
    return chosen(os.environ, dict.fromkeys(launch.environment, ""))


def _section(plan: RunPlan) -> SlurmLaunch:
    launch = plan.config.launch
    assert isinstance(launch, SlurmLaunch)
    return launch


def _chain(files: AttemptFiles) -> int:
    from trainer.records.json_file import read_json

    return int(read_json(files.plan)["config"]["launch"]["chain"])


def _withdraw(files: AttemptFiles, ids: Sequence[str]) -> None:
    for job in ids:
        ask(["scancel", job])
    write_ended(files.ended, Ended(time=time.time(), codes={}))
