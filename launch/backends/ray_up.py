"""`ray up`: machines of AWS or GCP through Ray's cluster launcher; `ray` is the user's own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launch.base import Job, JobState, Submission, spec_of
from launch.cloud.handing import hand_over
from launch.cloud.names import job_name
from launch.cloud.needs import refuse_what_lacks
from launch.cloud.ray_cluster import CLUSTER, cluster_text, commands, job_words, on_head
from launch.cloud.schemas import check_ray
from launch.cloud.tool import ask, refuse_without
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.run.job_record import JobRecord, read_job
from trainer.config.sections.cloud import RayUpLaunch
from trainer.errors import Refused
from trainer.plan import RunPlan
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles, RunFiles

_TIMEOUT_S = 120.0  # over ssh
_VERDICT = "submission/verdict.json"  # under the attempt's folder: what Ray last said of its job
_STATUS = re.compile(r"Status for job '[^']*': ([A-Z]+)|Job '[^']*' (succeeded|failed|was stopped)")
_STATES = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "STOPPED": JobState.ENDED,
    "SUCCEEDED": JobState.ENDED,
    "FAILED": JobState.ENDED,
}


@dataclass(frozen=True)
class RayUpBackend:
    name: str = "ray_up"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        launch = _section(plan)
        file = f"{run_folder}/attempts/{plan.attempt:04d}/{CLUSTER}"
        files = {RANKS_FILE: spec_text(spec_of(plan)), CLUSTER: cluster_text(plan, launch)}
        first, *then = commands(plan, launch, file=file)
        return Submission(argv=first, then=tuple(then), files=files)

    def preflight(self, plan: RunPlan) -> None:
        """Raises: ConfigError for what is missing; Refused without `ray` or `rsync`, or for a file
        that Ray would not take."""
        launch = _section(plan)
        refuse_what_lacks(plan, launch)
        how = f"pip install 'ray[default]=={launch.ray_version}' boto3"
        refuse_without("ray", kind=self.name, how=how)
        refuse_without("rsync", kind=self.name, how="Ray sends files with it")
        check_ray(cluster_text(plan, launch))

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Raises: Refused if a command fails; machines may be there by then, and it says so."""
        run = RunFiles(run_folder)
        files = run.attempt(attempt)
        file = str(files.root / CLUSTER)
        name = job_name(RunPlan.model_validate(read_json(files.plan)))
        record = JobRecord(self.name, name, file)
        job: Job | None = Job(
            JobState.ENDED, "it was not submitted: its cluster did not come up", "failed"
        )
        try:
            hand_over([submission.argv], files, record=lambda said: record)
            job = None  # from here on Ray may have it, whatever is heard of that
            hand_over(submission.then, files, record=lambda said: record)
        except Refused as e:
            if job is not None:
                _remember(files, job)
            raise Refused(f"{e}; machines may be up: ray down {file}") from e
        print(f"{run.name}: job {name} is on its way; the head stays until: ray down {file}")
        return 0

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        """One question a cluster: each run has its own."""
        return [_job(files) for files in attempts]

    def stop(self, files: AttemptFiles) -> None:
        record, launch = read_job(files), _launch_of(files)
        if record is None or launch is None:
            return
        words = job_words(launch, "stop", "--no-wait", record.job)
        answer = ask(on_head(_file(files), words), timeout_s=_TIMEOUT_S)
        if answer.code != 0 and _job(files).state is not JobState.ENDED:
            raise Refused(f"job {record.job} cannot be stopped over ssh: {answer.why}")


def read_status(text: str) -> Job:
    """From the words of `ray job status`."""
    found = _STATUS.search(text)
    if found is None:
        return Job(JobState.UNKNOWN, "ray does not say how it stands")
    word = (found[1] or {"was stopped": "STOPPED"}.get(found[2], found[2])).upper()
    verdicts = {"SUCCEEDED": "finished", "STOPPED": "stopped", "FAILED": "failed"}
    return Job(_STATES.get(word, JobState.UNKNOWN), word.lower(), verdicts.get(word, ""))


def _job(files: AttemptFiles) -> Job:
    """A job that is over stays so, and its head may be gone by now: it is asked until then."""
    record, launch = read_job(files), _launch_of(files)
    if record is None or launch is None:
        return Job(JobState.UNKNOWN, "no job is recorded")
    if (known := _heard(files)) is not None:
        return known
    words = job_words(launch, "status", record.job)
    answer = ask(on_head(_file(files), words), timeout_s=_TIMEOUT_S)
    if answer.code != 0:
        return Job(JobState.UNKNOWN, f"its head cannot be asked: {answer.why}")
    found = read_status(answer.out + answer.err)
    if found.state is JobState.ENDED:
        _remember(files, found)
    return found


def _remember(files: AttemptFiles, job: Job) -> None:
    with suppress(OSError):  # a folder that one may only look at
        write_json(files.root / _VERDICT, {"why": job.why, "verdict": job.verdict})


def _heard(files: AttemptFiles) -> Job | None:
    """None: nobody has heard yet that the job is over."""
    try:
        said = read_json(files.root / _VERDICT)
        return Job(JobState.ENDED, str(said["why"]), str(said["verdict"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _file(files: AttemptFiles) -> str:
    return str(files.root / CLUSTER)


def _launch_of(files: AttemptFiles) -> RayUpLaunch | None:
    try:
        return RayUpLaunch.model_validate(read_json(files.plan)["config"]["launch"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _section(plan: RunPlan) -> RayUpLaunch:
    launch = plan.config.launch
    assert isinstance(launch, RayUpLaunch)
    return launch
