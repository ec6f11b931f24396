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
from launch.run.liveness import own_mark, read_mark
from launch.run.not_taken import write_not_taken
from launch.run.run_folder import typed_name
from launch.slurm.array import link
from launch.slurm.array import render as render_array
from launch.slurm.client import Answer, accepted, ask, on, plain_environment
from launch.slurm.preflight import check, refuse_without_slurm
from launch.slurm.queue import is_answer, look_up, newest
from launch.slurm.script import OUTPUT, render, section_of
from trainer.config.sections.slurm import SlurmLaunch
from trainer.errors import LonghaulError, Refused
from trainer.plan import RunPlan
from trainer.records.run_files import AttemptFiles, RunFiles

SCRIPT = "submission/job.sbatch"  # under the attempt's folder
ARRAY = "submission/array.sbatch"  # of the first run of an array
_ALWAYS = ("PATH", "HOME", "USER", "SLURM_CONF", "SLURM_CLUSTERS")  # sbatch itself needs them


@dataclass(frozen=True)
class SlurmBackend:
    """`module` is what the ranks run."""

    module: str = WORKER
    name: str = "slurm"
    in_foreground: bool = False

    def render(self, plan: RunPlan, *, run_folder: str) -> Submission:
        launch = section_of(plan)
        script = f"{run_folder}/attempts/{plan.attempt:04d}/{SCRIPT}"
        argv = ["sbatch", "--parsable", "--export=ALL", script, "python"]
        spec = spec_of(plan, module=self.module)
        files = {RANKS_FILE: spec_text(spec), SCRIPT: render(plan, run_folder=run_folder)}
        env = dict.fromkeys(launch.environment, "(yours)")
        return Submission(argv=tuple(argv), files=files, env=env)

    def preflight(self, plan: RunPlan) -> None:
        """Raises: Refused if Slurm is not here or would not take the job; ConfigError for what the
        partition cannot give."""
        self.preflight_all([plan], name=plan.config.run.name)

    def submit(self, submission: Submission, run_folder: Path, *, attempt: int) -> int:
        """Raises: Refused if Slurm does not take it; LonghaulError if nobody can say."""
        run = RunFiles(run_folder)
        files = run.attempt(attempt)
        argv = [sys.executable if word == "python" else word for word in submission.argv]
        env = chosen(os.environ, submission.env)
        ids: list[str] = []
        cluster = ""
        for _ in range(_chain(files)):
            after = [f"--dependency=afterany:{ids[-1]}"] if ids else []
            answer = ask([argv[0], *after, *argv[1:]], env=env)
            taken = accepted(answer)
            if taken is None:
                _withdraw(ids, cluster)
                error = _not_taken(answer, "the job", run=run)
                write_not_taken(files, error)
                raise error
            job, cluster = taken
            ids.append(job)
            write_job(files, JobRecord(self.name, ids[0], cluster, tuple(ids[1:])))
        forget_own_mark(files)
        print(submitted_text(run, ids))
        return 0

    def preflight_all(self, plans: Sequence[RunPlan], *, name: str) -> None:
        """As `preflight`, with one question to Slurm for runs that go into one array.

        Raises: as `preflight`.
        """
        refuse_without_slurm()
        launch = section_of(plans[0])
        script = self.render_all(plans, name=name)
        said = check(plans, launch, script=script, env=_environment(launch))
        if launch.test_only:
            of = f"{len(plans)} runs: " if len(plans) > 1 else ""
            print(f"{of}{said or 'Slurm takes the job'}\nnothing was written or queued")

    def render_all(self, plans: Sequence[RunPlan], *, name: str) -> str:
        """The array of runs that go together; of a single one, its own job. Pure."""
        if len(plans) == 1:
            return render(plans[0], run_folder=_folder(plans[0]))
        scripts = [f"{_folder(plan)}/attempts/{plan.attempt:04d}/{SCRIPT}" for plan in plans]
        return render_array(plans, scripts=scripts, name=name)

    def submit_all(self, plans: Sequence[RunPlan], runs: Sequence[RunFiles], *, name: str) -> None:
        """One array; what each run would submit lies in its attempt's folder already.

        Raises: Refused if Slurm does not take it; LonghaulError if nobody can say.
        """
        files = [run.attempt(plan.attempt) for run, plan in zip(runs, plans, strict=True)]
        path = files[0].root / ARRAY
        path.write_text(self.render_all(plans, name=name), encoding="utf-8")
        link(plans)
        argv = ["sbatch", "--parsable", "--export=ALL", str(path), sys.executable]
        answer = ask(argv, env=_environment(section_of(plans[0])))
        taken = accepted(answer)
        if taken is None:
            error = _not_taken(answer, f"the array of {len(files)} runs", run=runs[0])
            for each in files:
                write_not_taken(each, error)
            raise error
        job, cluster = taken
        for number, each in enumerate(files):
            write_job(each, JobRecord(self.name, f"{job}_{number}", cluster))
            forget_own_mark(each)
        print(f"{len(files)} runs are queued as job {job}, one task each:")
        for number, run in enumerate(runs):
            print(f"  {job}_{number}  {run.root}")

    def jobs(self, attempts: Sequence[AttemptFiles]) -> list[Job]:
        records = [read_job(files) for files in attempts]
        kept = [record for record in records if record]
        known = {
            name: look_up((j for r in kept if r.cluster == name for j in r.jobs), cluster=name)
            for name in {record.cluster for record in kept}
        }
        return [
            newest(record.jobs, known[record.cluster])
            if record
            else Job(JobState.UNKNOWN, "no job is recorded")
            for record in records
        ]

    def stop(self, files: AttemptFiles) -> None:
        record = read_job(files)
        if record is None:
            return
        for each in reversed(record.jobs):  # the last of a chain first: none begins meanwhile
            answer = _withdraw_pending(each, record.cluster)
            if not (is_answer(answer) or "already comple" in answer.err):
                run = RunFiles(files.root.parent.parent)
                raise Refused(
                    f"{run.name} cannot be stopped now, Slurm does not take it: {answer.why}; "
                    f"longhaul stop {typed_name(run)} once more when Slurm answers"
                )
        (job,) = self.jobs([files])
        if job.state is JobState.RUNNING and files.ended.exists():
            name = files.root.parent.parent.name
            raise Refused(f"{name} begins its next attempt now: longhaul stop {name} once more")
        if job.state is JobState.RUNNING:
            for each in record.jobs:
                ask(["scancel", *on(record.cluster), "--signal=TERM", each])
        elif job.state is JobState.UNKNOWN:
            return  # where it was not withdrawn it reads stop.json when it begins
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


def _folder(plan: RunPlan) -> str:
    return str(Path(plan.config.run.root) / plan.config.run.name)


def forget_own_mark(files: AttemptFiles) -> None:
    """Of this process: the job names its own, and may have done so by now."""
    if read_mark(files.agent) == own_mark():
        files.agent.unlink(missing_ok=True)


def _not_taken(answer: Answer, what: str, *, run: RunFiles) -> LonghaulError:
    """A busy controller may take a job and say so too late."""
    doubtful = answer.code == 0 or any(one in answer.why for one in ("timed out", "no answer in"))
    if not doubtful:
        return Refused(f"sbatch did not take {what}: {answer.why}")
    said = answer.why if answer.code != 0 else f"{answer.out.strip()[:100]!r} is no number of a job"
    return LonghaulError(
        f"nobody can say whether Slurm took {what}: sbatch: {said}; squeue shows it. "
        f"longhaul resume {typed_name(run)} submits it again, "
        "to which a job that was taken gives way"
    )


def _withdraw_pending(job: str, cluster: str) -> Answer:
    """One task of an array by its number alone: asked for those that wait, scancel takes all of the
    array that do, for they are one record to it."""
    if "_" not in job:
        return ask(["scancel", *on(cluster), "--state=PENDING", job])
    options = [*on(cluster), "--noheader", "--array", f"--jobs={job}", "--format=%T"]
    state = ask(["squeue", *options])
    is_pending = state.out.split()[-1:] == ["PENDING"]
    return ask(["scancel", *on(cluster), job]) if is_pending else state


def _chain(files: AttemptFiles) -> int:
    from trainer.records.json_file import read_json

    return int(read_json(files.plan)["config"]["launch"]["chain"])


def _withdraw(ids: Sequence[str], cluster: str) -> None:
    for job in ids:
        ask(["scancel", *on(cluster), job])
