"""How jobs stand: `squeue` for all of them at once, then `sacct` for those it has forgotten.

Text formats with named columns; they are the same from Slurm 20 to 25. A job that nobody knows any
more has ended; a question that nobody answered says nothing, and never "failed".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from launch.run.job_record import Job, JobState
from launch.slurm.client import Answer, ask, lines_of, on
from launch.slurm.reasons import note_of, why_busy, why_pending

_SQUEUE = "%i|%T|%r|%S|%L|%N"  # id, state, reason, start, time left, nodes
_SACCT = "JobID,State,ExitCode,NodeList"  # 123_4 of an array, whose raw id is another number
_BATCH = 2000  # ids of one command: a command line has its limits

_PENDING = {
    *("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"),
}
_RUNNING = {
    *("RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "SIGNALING", "STAGE_OUT", "STOPPED"),
    *("RESIZING", "POWER_UP_NODE"),
}
_ENDED = {
    *("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL"),
    *("DEADLINE", "OUT_OF_MEMORY", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
}


@dataclass(frozen=True)
class Row:
    """One line about one job, of either command."""

    job: str
    state: str
    reason: str = ""
    start: str = ""
    left: str = ""
    nodes: str = ""


def look_up(ids: Iterable[str], *, cluster: str = "") -> dict[str, Job]:
    """Every id with how it stands. `cluster`: its name, where it is not this machine's own."""
    wanted = sorted({each for each in ids if each})
    found: dict[str, Job] = {}
    for start in range(0, len(wanted), _BATCH):
        found |= _look_up(wanted[start : start + _BATCH], cluster)
    return found


def _look_up(ids: Sequence[str], cluster: str) -> dict[str, Job]:
    if not ids:
        return {}
    listed = ",".join(ids)
    argv = ["squeue", *on(cluster), "--noheader", "--array", "--states=all", f"--jobs={listed}"]
    answer = ask([*argv, f"--format={_SQUEUE}"])
    if not is_answer(answer):
        return dict.fromkeys(ids, Job(JobState.UNKNOWN, f"squeue: {answer.why}"))
    rows = {row.job: row for row in rows_of_squeue(answer.out)}
    found = {each: job_of(rows[each]) for each in ids if each in rows}
    if not rows and (said := lines_of(answer.out)):
        unread = Job(JobState.UNKNOWN, f"squeue said what cannot be read: {said[0][:100]!r}")
        return dict.fromkeys(ids, unread)
    return found | _forgotten([each for each in ids if each not in rows], cluster)


def is_answer(answer: Answer) -> bool:
    """A job that is unknown is an answer too."""
    return answer.code == 0 or "Invalid job id" in answer.err


def _forgotten(ids: Sequence[str], cluster: str) -> dict[str, Job]:
    """Jobs the controller has no more: it keeps them some minutes after their end."""
    if not ids:
        return {}
    found = dict.fromkeys(ids, Job(JobState.ENDED, "Slurm has forgotten it"))
    listed = ",".join(ids)
    argv = ["sacct", *on(cluster), "--noheader", "--parsable2", "--allocations"]
    answer = ask([*argv, f"--jobs={listed}", f"--format={_SACCT}"])
    if answer.code == 0:
        found |= {r.job: job_of(r) for r in rows_of_sacct(answer.out) if r.job in found}
    return found


def rows_of_squeue(text: str) -> Iterator[Row]:
    for line in text.splitlines():
        parts = line.split("|", 5)
        if len(parts) == 6:
            job, state, reason, start, left, nodes = (part.strip() for part in parts)
            yield Row(job, first_word(state), reason, start, left, nodes)


def rows_of_sacct(text: str) -> Iterator[Row]:
    """The last line of a job is its newest attempt."""
    for line in text.splitlines():
        parts = line.split("|", 3)
        if len(parts) == 4:
            job, state, code, nodes = (part.strip() for part in parts)
            yield Row(job, first_word(state), f"exit code {code}", nodes=nodes)


def first_word(state: str) -> str:
    """CANCELLED of "CANCELLED by 1000", "CANCELLED+" and "CANCELLED,REQUEUED"."""
    words = state.replace(",", " ").replace("+", " ").split()
    return words[0].upper() if words else ""


def job_of(row: Row) -> Job:
    if row.state in _PENDING:
        why = f"job {row.job} waits: {why_pending(row.reason, row.start)}"
        return Job(JobState.PENDING, why, note=note_of(row.state, row.reason))
    if row.state in _RUNNING:
        how = "" if row.state == "RUNNING" else f" ({row.state.lower()})"
        left = f", {row.left} left" if row.left and row.left[0].isdigit() else ""
        means = f": {said}" if (said := why_busy(row.state)) else ""
        why = f"job {row.job} on {row.nodes or '?'}{how}{left}{means}"
        return Job(JobState.RUNNING, why, note=note_of(row.state, ""))
    if row.state in _ENDED:
        return Job(JobState.ENDED, f"job {row.job} {row.state.lower()}")
    return Job(JobState.UNKNOWN, f"job {row.job} is {row.state or 'in no state'} to Slurm")


def newest(ids: Sequence[str], jobs: Mapping[str, Job]) -> Job:
    """Of a chain: the first of its jobs that is not over; else the first."""
    known = [jobs.get(each, Job(JobState.UNKNOWN)) for each in ids]
    alive = [job for job in known if job.state is not JobState.ENDED]
    return alive[0] if alive else known[0]
