"""An attempt that no rank ever ran: its place did not take it. Why is kept with the attempt."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from launch.run.budgets import NOT_TAKEN
from launch.run.ended import Ended, write_ended
from launch.run.lease import read_beat
from launch.run.liveness import own_mark, read_mark
from launch.run.run_folder import attempts
from trainer.errors import Exit, LonghaulError
from trainer.records.attempt import error_record, read_error, write_first
from trainer.records.run_files import AttemptFiles, RunFiles


def write_not_taken(files: AttemptFiles, error: LonghaulError) -> None:
    """`error`: its text is what `status` and `logs --why` say of the attempt from now on."""
    record = error_record(error, rank=0, step=None)
    record = replace(record, kind=NOT_TAKEN, exit_code=int(Exit.FAILED), traceback="")
    with suppress(OSError):  # a disk that takes no record must not hide the error itself
        write_first(files.error, record)
        write_ended(files.ended, Ended(time=time.time(), codes={}))


def note_if_not_taken(run: RunFiles, attempt: int, error: LonghaulError) -> None:
    """Where it, or what followed it in this process, had not begun when `error` was raised."""
    newest = attempts(run)[-1]
    is_own = newest.number == attempt or read_mark(newest.agent) == own_mark()
    if is_own and read_beat(newest) is None and not newest.ended.exists():
        write_not_taken(newest, error)


def was_taken_after_all(files: AttemptFiles) -> bool:
    """Its job has begun: who submitted it heard no answer, and wrote that down. That is undone."""
    try:
        error = read_error(files.error)
    except (ValueError, TypeError):
        return False
    if error is None or error.kind != NOT_TAKEN:
        return False
    files.ended.unlink(missing_ok=True)
    files.error.unlink(missing_ok=True)
    return True
