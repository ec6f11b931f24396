"""Attempts that were handed over to a scheduler: how they stand, and under which number.

Standard library only.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum

from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles

JOB_FILE = "submission/job.json"  # under the attempt's folder


class JobState(Enum):
    PENDING = "pending"  # handed over, not begun
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"  # nobody who was asked knows; never the same as failed


@dataclass(frozen=True)
class Job:
    """What a place says of one attempt. `why`: what it waits for, or where it is; for people.

    `verdict`: how it ended (finished, stopped, failed), from a place that has a run folder of its
    own, so that the files here do not tell. `note`: one word that the state lacks, where a person
    should look: it runs, but suspended; it waits, and held.
    """

    state: JobState
    why: str = ""
    verdict: str = ""
    note: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it runs, or will by itself."""
        return self.state in (JobState.PENDING, JobState.RUNNING)


@dataclass(frozen=True)
class JobRecord:
    """`kind`: of the backend. `chain`: jobs that wait for this one, to go on after it."""

    kind: str
    job: str
    cluster: str = ""
    chain: tuple[str, ...] = ()

    @property
    def jobs(self) -> tuple[str, ...]:
        return (self.job, *self.chain)


def write_job(files: AttemptFiles, record: JobRecord) -> None:
    path = files.root / JOB_FILE
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_json(path, asdict(record))


def read_job(files: AttemptFiles) -> JobRecord | None:
    """None if no scheduler was asked, or what was written down cannot be read."""
    try:
        value = read_json(files.root / JOB_FILE)
        return JobRecord(**value | {"chain": tuple(value.get("chain", ()))})
    except (OSError, ValueError, TypeError, AttributeError):
        return None
