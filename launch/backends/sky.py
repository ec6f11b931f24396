"""SkyPilot: a managed job, or a cluster of one job. `sky` is the user's, in its own environment."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, JobState, Submission, spec_of
from launch.cloud.handing import hand_over
from launch.cloud.needs import refuse_what_lacks
from launch.cloud.offers import offers, say_offers
from launch.cloud.schemas import check_sky
from launch.cloud.sky_queue import TIMEOUT_S, Jobs, cluster_jobs, managed_jobs
from launch.cloud.sky_task import TASK, commands, task_text
from launch.cloud.tool import ask, refuse_without
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.run.job_record import JobRecord, read_job
from trainer.config.sections.cloud import SkyLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles, RunFiles

_HOW = "install SkyPilot in an environment of its own, with pipx for one, then `sky check`"
_SUBMITTED = re.compile(r"\bID: (\d+)")


@dataclass(frozen=True)
class SkyBackend:
    name: str = "sky"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        launch = _section(plan)
        file = f"{run_folder}/attempts/{plan.attempt:04d}/{TASK}"
        files = {RANKS_FILE: spec_text(spec_of(plan)), TASK: task_text(plan, launch)}
        env = dict.fromkeys(launch.environment, "(yours)")
        return Submission(argv=commands(plan, launch, file=file), files=files, env=env)

    def preflight(self, plan: RunPlan) -> None:
        """Raises: ConfigError for what is missing; Refused without `sky`, for a GPU that it does
        not know, or for a task that it would not take."""
        launch = _section(plan)
        refuse_what_lacks(plan, launch)
        refuse_without("sky", kind=self.name, how=_HOW)
        check_sky(task_text(plan, launch))
        if launch.gpu is not None and launch.show_offers:
            count = plan.config.resources.ranks_per_node
            found = offers(launch.gpu, count, infra=launch.infra)
            if said := say_offers(launch.gpu, count, found, spot=launch.spot):
                print(said, file=sys.stderr, flush=True)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Raises: Refused if SkyPilot does not take it."""
        run = RunFiles(run_folder)
        argv = submission.argv
        name, cluster = _after(argv, "--name"), _after(argv, "--cluster")

        def record(said: str) -> JobRecord:
            ids = _SUBMITTED.findall(said)
            return JobRecord(self.name, ids[-1] if ids else name, cluster)

        found = hand_over([argv, *submission.then], run.attempt(attempt), record=record)
        place = f"job {found.job}" if found.job else f"cluster {found.cluster}"
        print(f"{run.name}: {place} is with SkyPilot; watch it with longhaul status {run.root}")
        return 0

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        records = [read_job(files) for files in attempts]
        known = [record for record in records if record is not None]
        clusters = sorted({record.cluster for record in known if record.cluster})
        jobs = managed_jobs() if any(not record.cluster for record in known) else None
        queues = cluster_jobs(clusters) if clusters else None
        return [_job(record, jobs, queues) for record in records]

    def stop(self, files: AttemptFiles) -> None:
        """SkyPilot tells the run to save and stop, and kills it after 30 s."""
        record = read_job(files)
        if record is None:
            return
        answer = ask(_cancel(record), timeout_s=TIMEOUT_S)
        if answer.code != 0 and self.jobs([files])[0].state is not JobState.ENDED:
            raise Refused(f"sky does not stop job {record.job or record.cluster}: {answer.why}")


def _job(record: JobRecord | None, jobs: Jobs | None, queues: Mapping[str, Jobs] | None) -> Job:
    if record is None:
        return Job(JobState.UNKNOWN, "no job is recorded")
    listed = jobs if not record.cluster else (queues or {}).get(record.cluster)
    if listed is None:
        return Job(JobState.UNKNOWN, "sky gives no answer")
    if record.cluster and not record.job and listed:
        return listed[max((number for number in listed if number.isdecimal()), key=int)]
    return listed.get(record.job, Job(JobState.UNKNOWN, f"sky knows no job {record.job}"))


def _cancel(record: JobRecord) -> tuple[str, ...]:
    if record.cluster:
        return ("sky", "cancel", "--yes", record.cluster, record.job or "--all")
    which = [record.job] if record.job.isdecimal() else ["--name", record.job]
    return ("sky", "jobs", "cancel", "--yes", *which)


def _after(argv: Sequence[str], flag: str) -> str:
    return argv[argv.index(flag) + 1] if flag in argv else ""


def _section(plan: RunPlan) -> SkyLaunch:
    launch = plan.config.launch
    assert isinstance(launch, SkyLaunch)
    return launch
