"""Handing over with the user's tool, and what is written down about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launch.cloud.tool import Answer, tell
from launch.run.job_record import JobRecord, write_job
from launch.run.not_taken import write_not_taken
from trainer.errors import Refused
from trainer.records.run_files import AttemptFiles


def hand_over(
    commands: Sequence[Sequence[str]],
    files: AttemptFiles,
    *,
    record: Callable[[str], JobRecord],
) -> JobRecord:
    """Run the commands in order. `record`: from what they said, under which name the job is known;
    it is written down before the first one too (""), so that a submission which is interrupted can
    still be found and stopped.

    Raises: Refused with the tool's own words if it does not take it.
    """
    write_job(files, record(""))
    said = ""
    for argv in commands:
        answer: Answer = tell(argv)
        if answer.code != 0:
            error = Refused(f"{' '.join(argv[:3])} failed: {answer.why}")
            write_not_taken(files, error)
            raise error
        said += answer.out
    found = record(said)
    write_job(files, found)
    files.agent.unlink(missing_ok=True)  # this process; the job names its own
    return found
