"""What an attempt leaves behind, so that the next decision is made from files.

started.json  written by rank 0 once training is about to begin (world met, state loaded)
stop.json     somebody asked the run to stop: who and how
done.json     the run reached its last step
error.json    the first failure, written by the rank that failed (first writer wins)
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import Exit, LonghaulError
from trainer.records.json_file import read_json, write_json
from trainer.records.redact import redactor_of

PAUSE = "steps.pause_at"  # the `detail` of a stop that the settings asked for
StopCause = Literal["user", "scheduler", "time_limit", "drain", "interrupt", "resize"]


@dataclass(frozen=True)
class Started:
    """Units: `time` seconds since the epoch; `step` is the last step already done."""

    time: float
    step: int
    world_size: int
    host: str
    job_id: str = ""


@dataclass(frozen=True)
class Stop:
    """`user` stays stopped; every other cause is started again by whoever restarts."""

    cause: StopCause
    time: float
    detail: str = ""


@dataclass(frozen=True)
class Done:
    time: float
    step: int
    loss: float | None
    best_step: int | None = None  # whose checkpoint is the result, where evaluations decide
    said: str = ""  # about that, for people


@dataclass(frozen=True)
class ErrorRecord:
    """The first failure of an attempt. `kind` is the exception's class name.

    `is_echo`: it only says that other ranks were lost; one of them knows the cause.
    """

    time: float
    rank: int
    host: str
    kind: str
    message: str
    exit_code: int
    step: int | None = None
    traceback: str = ""
    is_echo: bool = False


def error_record(
    error: BaseException, *, rank: int, step: int | None, is_echo: bool = False
) -> ErrorRecord:
    """`step`: the last one that was done, once there is a state. Keys are left out of it."""
    code = error.exit_code if isinstance(error, LonghaulError) else Exit.FAILED
    redactor = redactor_of(os.environ)
    return ErrorRecord(
        time=time.time(),
        rank=rank,
        host=socket.gethostname(),
        kind=type(error).__name__,
        message=redactor.text(str(error)),
        exit_code=int(code),
        step=step,
        traceback=redactor.text("".join(traceback.format_exception(error))),
        is_echo=is_echo,
    )


def write_record(path: Path, record: Started | Stop | Done | ErrorRecord) -> None:
    write_json(path, asdict(record))


def write_first(path: Path, record: ErrorRecord) -> bool:
    """Write unless the file exists already; True if this call wrote it. Safe between ranks."""
    partial = path.with_name(f".{path.name}.{record.rank}.partial")
    write_json(partial, asdict(record))
    try:
        os.link(partial, path)  # atomic: fails when another rank was first
        return True
    except FileExistsError:
        return False
    finally:
        partial.unlink(missing_ok=True)


def read_stop(path: Path) -> Stop | None:
    found = _read(path)
    return Stop(**found) if found is not None else None


def read_done(path: Path) -> Done | None:
    found = _read(path)
    return Done(**found) if found is not None else None


def read_started(path: Path) -> Started | None:
    found = _read(path)
    return Started(**found) if found is not None else None


def read_error(path: Path) -> ErrorRecord | None:
    found = _read(path)
    return ErrorRecord(**found) if found is not None else None


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    value: dict[str, Any] = read_json(path)
    return value
