"""Who carries a run now, whatever it runs on: a process of this machine, one elsewhere, or a job.

A scheduler's word counts for attempts that were handed over to one; else the mark of the agent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launch.backends.table import backend_of
from launch.run.job_record import Job, JobRecord, JobState, read_job
from launch.run.liveness import ProcessMark
from launch.run.run_folder import (
    AlreadyCarried,
    attempts,
    is_being_stopped,
    refuse_if_running,
    running,
    silent_owner,
    typed_name,
)
from trainer.errors import Refused
from trainer.records.run_files import AttemptFiles, RunFiles


@dataclass(frozen=True)
class Standing:
    """`record` None: the newest attempt was not handed over to a scheduler."""

    files: AttemptFiles | None = None
    record: JobRecord | None = None
    job: Job | None = None
    mark: ProcessMark | None = None

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will by itself."""
        if self.job is not None:
            return self.job.is_active
        return self.mark is not None

    @property
    def may_be_active(self) -> bool:
        return self.is_active or (self.job is not None and self.job.state is JobState.UNKNOWN)


def standings(runs: Sequence[RunFiles]) -> list[Standing]:
    """Of the newest attempts, in the order of `runs`; each scheduler is asked once."""
    found = [_of_files(run) for run in runs]
    kinds = {each.record.kind for each in found if each.record}
    for kind in sorted(kinds):
        at = [i for i, each in enumerate(found) if each.record and each.record.kind == kind]
        asked = [files for i in at if (files := found[i].files) is not None]
        for i, job in zip(at, backend_of(kind).jobs(asked), strict=True):
            found[i] = Standing(found[i].files, found[i].record, job)
    return found


def standing(run: RunFiles) -> Standing:
    return standings([run])[0]


def _of_files(run: RunFiles) -> Standing:
    known = attempts(run)
    if not known:
        return Standing()
    record = read_job(known[-1])
    return Standing(known[-1], record, mark=None if record else running(run))


def free_to_start(run: RunFiles, *, lease_s: float, takeover: bool) -> ProcessMark | None:
    """The mark of an agent of which nothing more is to be expected, if the run has one.

    Raises: Refused if the run is carried, or will be, by a job; what a process does is for
    `refuse_if_running` to say. Waits where an owner on another host has to be watched.
    """
    now = standing(run)
    if now.job is None:
        return silent_owner(run, lease_s=lease_s, takeover=takeover)
    assert now.record is not None
    if now.job.state is JobState.ENDED or takeover:
        return running(run)
    name = run.name
    if now.job.state is JobState.UNKNOWN:
        raise Refused(
            f"nobody can say whether {now.record.kind} job {now.record.job} of run {name} is over: "
            f"{now.job.why}; if it is: resume.takeover=true"
        )
    if is_being_stopped(run):
        why = f"was told to stop and is not over: {now.job.why}"
        raise Refused(f"run {name} {why}; try once more when it is")
    how = "waits already" if now.job.state is JobState.PENDING else "is running already"
    raise AlreadyCarried(
        f"run {name} {how}: {now.job.why}; see `longhaul status {typed_name(run)}`, end it with "
        f"`longhaul stop {typed_name(run)}`"
    )


def refuse_if_active(run: RunFiles) -> None:
    """Raises: Refused if anybody carries the run, or may."""
    now = standing(run)
    if now.job is None:
        refuse_if_running(run)
    elif now.may_be_active:
        raise Refused(
            f"run {run.name} is not over: {now.job.why}; end it with "
            f"`longhaul stop {typed_name(run)}`"
        )
