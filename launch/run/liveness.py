"""Which process is meant by a pid in a file. A pid alone may be somebody else's by now."""

from __future__ import annotations

import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.run.job_record import Job, JobState
from trainer.records.json_file import read_json, write_json


@dataclass(frozen=True)
class ProcessMark:
    """Units: `start_ticks` since boot, as in /proc/PID/stat; with `boot_id` it never repeats."""

    pid: int
    start_ticks: int
    host: str
    boot_id: str


def own_mark() -> ProcessMark:
    pid = os.getpid()
    return ProcessMark(
        pid=pid, start_ticks=_start_ticks(pid) or 0, host=socket.gethostname(), boot_id=_boot_id()
    )


def write_mark(path: Path, mark: ProcessMark) -> None:
    write_json(path, asdict(mark))


def read_mark(path: Path) -> ProcessMark | None:
    """None if there is none or it is unreadable: nobody can be signalled by such a mark."""
    try:
        return ProcessMark(**read_json(path))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def is_elsewhere(mark: ProcessMark) -> bool:
    return mark.host != socket.gethostname()


def is_alive(mark: ProcessMark) -> bool:
    """Whether that very process still runs on this machine; False for one of another host."""
    return mark.boot_id == _boot_id() and _start_ticks(mark.pid) == mark.start_ticks


def job_of_mark(path: Path, *, who: str) -> Job:
    """How an attempt stands that the process in this file carries. `who` that is, for people."""
    mark = read_mark(path)
    if mark is None:
        return Job(JobState.ENDED)
    if is_elsewhere(mark):
        return Job(JobState.UNKNOWN, f"its {who} is on {mark.host}")
    if is_alive(mark):
        return Job(JobState.RUNNING, f"process {mark.pid} on {mark.host}")
    return Job(JobState.ENDED)


def _start_ticks(pid: int) -> int | None:
    """None if there is no such process or it is a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold blanks and brackets
    return None if fields[0] in "ZX" else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
