"""What a job does next, from the files of its run: one line that the batch script reads.

    python -m launch.slurm.verdict RUN_FOLDER --first N                 at the job's beginning
    python -m launch.slurm.verdict RUN_FOLDER --first N --after M --code C       after an attempt

    run N [OPTION ...]   attempt N in this allocation, with these options of srun
    requeue              this job shall queue again
    resubmit [NODES]     a new job shall go on, without these nodes
    leave CODE           the job is over, or Slurm is ending it itself

One layer restarts: ranks that failed start again in the allocation; what took the allocation away
(preemption, time limit, a lost node) brings the job back through the queue. A job that Slurm is
ending is left alone: to requeue one that was cancelled would bring it back. Reasons go to standard
error. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch.node.ranks_spec import RanksSpec, spec_of_attempt
from launch.node.reactions import say
from launch.outcome import Observed, Outcome, decide, observe
from launch.run.attempts import close_attempt, concluded, read_lines_of
from launch.run.budgets import LAUNCH_FAILED
from launch.run.ended import ended_of_records, write_ended
from launch.run.job_record import JobRecord, read_job, write_job
from launch.run.lease import read_beat
from launch.run.next_attempt import bring_back, next_attempt, superseded
from launch.run.node_record import read_nodes, silent_hosts
from launch.run.not_taken import was_taken_after_all
from launch.run.run_folder import attempts, locked
from launch.run.turned_back import tell_copies
from launch.slurm.client import state_of
from launch.slurm.place import job_of
from launch.slurm.resubmit import script_of, would_take
from launch.slurm.suspects import suspected
from trainer.errors import Exit, LonghaulError
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class JobFacts:
    """The job that asks. `restarts`: how often it was requeued."""

    job: str
    nodes: int
    restarts: int

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> JobFacts:
        return cls(
            job=job_of(env),
            nodes=int(env.get("SLURM_JOB_NUM_NODES", "1")),
            restarts=int(env.get("SLURM_RESTART_COUNT", "0")),
        )


def begin(run: RunFiles, first: int, job: JobFacts) -> str:
    """The attempt that this job was submitted for, or the one that follows it."""
    with locked(run):
        newest = attempts(run)[-1]
        if newest.number == first and read_beat(newest) is None:
            return _first(newest, job)
        record = read_job(newest)
        if record is not None and job.job not in record.jobs:
            say(f"attempt {newest.number} belongs to job {record.job}, and not to this one")
            return f"leave {int(Exit.STOP)}"
        outcome = concluded(run, newest.number)
        if outcome is None:  # the job was ended before anybody could say it
            outcome = _conclude(run, newest, spec_of_attempt(newest))
        if outcome.action != "again":
            say(f"attempt {newest.number}: {outcome.why}")
            return _leave(outcome)
        following = _next(run, newest, outcome, job)
    say(f"attempt {newest.number}: {outcome.why}; attempt {following.number} goes on")
    return f"run {following.number}"


def after(run: RunFiles, attempt: int, job: JobFacts) -> str:
    """What follows attempt `attempt`, whose ranks have ended."""
    files = run.attempt(attempt)
    spec = spec_of_attempt(files)
    with locked(run):
        error = superseded(run, files)
        if error is not None:
            say(str(error))
            return f"leave {int(Exit.STOP)}"
        outcome = _conclude(run, files, spec)
        say(f"attempt {attempt}: {outcome.why}")
        if outcome.action != "again":
            if outcome.exit_code == Exit.NO_PROGRESS and (done := bring_back(run, attempt)):
                say(done)
            return _leave(outcome)
        if outcome.exit_code == Exit.FAILED and not spec.restart.enabled:
            return _leave(outcome)
        state = state_of(job.job)
        if state not in ("RUNNING", ""):
            say(f"Slurm is ending this job itself ({state.lower()})")
            return _leave(outcome)
        return _onward(run, files, spec, outcome, job)


def _onward(
    run: RunFiles, files: AttemptFiles, spec: RanksSpec, outcome: Outcome, job: JobFacts
) -> str:
    suspects = suspected(run, files, outcome)
    bad = suspects.hosts
    observed = _observed(run, files)
    launched = observed.error is None or observed.error.kind != LAUNCH_FAILED
    in_place = outcome.exit_code == Exit.FAILED and observed.stop is None and launched
    if in_place and bad and job.nodes - len(bad) >= spec.nodes:
        say(f"left out from here on: {', '.join(bad)} ({suspects.why})")
        return f"run {_next(run, files, outcome, job).number} --exclude={','.join(bad)}"
    if in_place and not suspects.certain:
        return f"run {_next(run, files, outcome, job).number}"
    record = read_job(files)
    if record is not None and record.chain and job.job != record.jobs[-1]:
        say("the next job of the chain goes on")
        return f"leave {int(Exit.SAVED)}"
    if suspects.certain and outcome.cause == "hardware" and would_take(run, bad):
        return f"resubmit {','.join(bad)}"
    return "requeue" if _may_requeue(run) else f"leave {int(outcome.exit_code)}"


def _first(files: AttemptFiles, job: JobFacts) -> str:
    if was_taken_after_all(files):
        write_job(files, JobRecord("slurm", job.job))
    record = read_job(files) or JobRecord("slurm", job.job)
    if job.job not in record.jobs:  # submitted by hand, from the script in the folder
        write_job(files, replace(record, job=job.job, chain=()))
    return f"run {files.number}"


def _next(run: RunFiles, files: AttemptFiles, outcome: Outcome, job: JobFacts) -> AttemptFiles:
    following = next_attempt(run, files, outcome)
    record = read_job(files) or JobRecord("slurm", job.job)
    jobs = record.jobs
    later = jobs[jobs.index(job.job) + 1 :] if job.job in jobs else ()
    write_job(following, replace(record, job=job.job, chain=later))
    return following


def _conclude(run: RunFiles, files: AttemptFiles, spec: RanksSpec) -> Outcome:
    records = read_nodes(files)
    ended = ended_of_records(records)
    if ended is not None and not files.ended.exists():
        write_ended(files.ended, ended)
    observed = _observed(run, files)
    earlier = [line for line in read_lines_of(run) if line.get("attempt", 0) < files.number]
    outcome = decide(observed, earlier=earlier, rules=spec.restart)
    close_attempt(run, files.number, outcome)
    return outcome


def _observed(run: RunFiles, files: AttemptFiles) -> Observed:
    """srun ends the other tasks by the signal that also means "save and stop". Where a node said
    nothing, that is what happened, unless somebody asked: a lost node, not a preemption."""
    observed = observe(run, files.number)
    stop = observed.stop
    if stop is not None and stop.cause == "scheduler" and silent_hosts(read_nodes(files)):
        return replace(observed, stop=None)
    return observed


def _leave(outcome: Outcome) -> str:
    code = outcome.exit_code
    as_asked = code == Exit.DONE or (code == Exit.SAVED and outcome.cause == "user")
    return f"leave {0 if as_asked else int(code)}"


def _tell_copies(run: RunFiles) -> None:
    """Where the run is over: nobody starts who would do it."""
    known = attempts(run)
    outcome = concluded(run, known[-1].number) if known else None
    if outcome is not None and outcome.action != "again" and (untold := tell_copies(run, outcome)):
        say(untold)


def _may_requeue(run: RunFiles) -> bool:
    """As the script says that this job was made from: attempts that follow have none."""
    script = script_of(run)
    return script is None or "#SBATCH --requeue\n" in script.read_text(encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.verdict")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--after", type=int)
    parser.add_argument("--code", type=int, default=0, help="of srun; for people")
    given = parser.parse_args(argv)
    run, job = RunFiles(given.run_folder), JobFacts.from_env(os.environ)
    try:
        print(begin(run, given.first, job) if given.after is None else after(run, given.after, job))
        _tell_copies(run)
    except LonghaulError as e:
        say(str(e))
        print(f"leave {int(e.exit_code)}")
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
