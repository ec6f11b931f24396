"""Asking a run to save and stop, wherever it runs."""

from __future__ import annotations

import time

from launch.backends.table import backend_of
from launch.run.job_record import JobRecord
from launch.run.liveness import is_elsewhere
from launch.run.standing import Standing
from trainer.errors import Refused
from trainer.records.attempt import Stop, write_record
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles, RunFiles


def ask_to_stop(run: RunFiles, now: Standing, *, detail: str) -> None:
    """`now` has an attempt. Asking twice is no error. Raises: Refused if it runs elsewhere."""
    assert now.files is not None
    kind = kind_of(now.files, now.record)
    if now.mark is not None and is_elsewhere(now.mark) and kind == "local":
        raise Refused(f"{run.name} runs on {now.mark.host}; stop it there")
    if not now.files.stop.exists():
        write_record(now.files.stop, Stop(cause="user", time=time.time(), detail=detail))
    backend_of(kind).stop(now.files)


def kind_of(files: AttemptFiles, record: JobRecord | None) -> str:
    """Who carries an attempt; "local" where nothing says so."""
    if record is not None:
        return record.kind
    try:
        return str(read_json(files.plan)["config"]["launch"]["kind"])
    except (OSError, ValueError, KeyError, TypeError):
        return "local"
