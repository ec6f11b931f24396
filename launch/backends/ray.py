"""Nodes of a Ray cluster; a driver on this machine, or as a job of the cluster, carries the run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, JobState, Submission
from launch.driving.detached import detach, driver_words, job_of, render_driven, stay, stop_driver
from launch.node.ranks_spec import WORKER
from launch.raying.jobs import JobsApi, job_command, open_environment
from launch.raying.preflight import address_of, check
from launch.run.ended import Ended, write_ended
from launch.run.job_record import JobRecord, read_job, write_job
from launch.run.not_taken import write_not_taken
from launch.run.run_folder import typed_name
from launch.ssh.words import selected
from trainer.config.sections.ray import RayLaunch
from trainer.errors import Exit, Refused
from trainer.plan import RunPlan, plan_of_attempt
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class RayBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "ray"
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
        assert isinstance(launch, RayLaunch)
        if launch.submit == "job":
            return _hand_over(submission, files, launch, run_id=plan.run_id)
        if launch.foreground:
            return stay(run_folder, attempt)
        where = f"the Ray cluster at {address_of(launch)}"
        return detach(files, submission.argv, where=where)

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        """Each dashboard is asked once."""
        answers: dict[str, dict[str, Job] | str] = {}
        found = []
        for files in attempts:
            record = read_job(files)
            if record is None:
                found.append(job_of(files))
                continue
            if record.cluster not in answers:
                answers[record.cluster] = _states(files)
            found.append(_job(record, answers[record.cluster]))
        return found

    def stop(self, files: AttemptFiles) -> None:
        """A driver looks for stop.json wherever it runs; a job that has not begun is withdrawn."""
        record = read_job(files)
        if record is None:
            stop_driver(files)
            return
        (job,) = self.jobs([files])
        if job.state is JobState.UNKNOWN:
            raise Refused(f"{files.root.parent.parent.name} cannot be stopped: {job.why}")
        if job.state is JobState.PENDING:
            _api_of(files).stop(record.job)
            write_ended(files.ended, Ended(time=time.time(), codes={}))


def _hand_over(
    submission: Submission, files: AttemptFiles, launch: RayLaunch, *, run_id: str
) -> int:
    """A submission that is repeated is no second run: Ray takes each id once."""
    api, name = JobsApi.of(launch), f"longhaul-{run_id}-{files.number:04d}"
    run_folder = files.root.parent.parent.absolute()
    env, secret = open_environment(selected(os.environ, launch.environment))
    if secret:
        names = ", ".join(secret)
        print(
            f"warning: not handed to the job: {names}. What a job is given the dashboard shows; "
            "ranks find keys in the environment that Ray was started with",
            file=sys.stderr,
            flush=True,
        )
    argv = driver_words(str(run_folder), files.number)
    assert argv[:3] == submission.argv[:3]
    write_job(files, JobRecord("ray", name, api.url))
    try:
        api.submit(name, job_command(argv, launch, workdir=str(Path.cwd())), env=env)
    except Refused as e:
        write_not_taken(files, e)
        raise
    files.agent.unlink(missing_ok=True)  # this process; the driver names itself
    typed = typed_name(RunFiles(run_folder))
    print(
        f"{run_folder.name}: attempt {files.number} is job {name} of the Ray cluster at {api.url}\n"
        f"  longhaul status {typed}   longhaul logs {typed} -f   longhaul stop {typed}"
    )
    return Exit.DONE


def _api_of(files: AttemptFiles) -> JobsApi:
    launch = plan_of_attempt(files).config.launch
    assert isinstance(launch, RayLaunch)
    return JobsApi.of(launch)


def _states(files: AttemptFiles) -> dict[str, Job] | str:
    """Of all jobs, or why nobody knows."""
    try:
        return _api_of(files).states()
    except (Refused, OSError) as e:
        return str(e).splitlines()[0]


def _job(record: JobRecord, answer: dict[str, Job] | str) -> Job:
    if isinstance(answer, str):
        return Job(JobState.UNKNOWN, answer)
    unknown = Job(JobState.UNKNOWN, f"the cluster at {record.cluster} does not know {record.job}")
    return answer.get(record.job, unknown)
