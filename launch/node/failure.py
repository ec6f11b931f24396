"""The first failing rank's own error, as one message."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Collection
from pathlib import Path

from launch.run.budgets import HUNG, KILLED, LAUNCH_FAILED, NODE_LOST, NOT_TAKEN, OUT_OF_MEMORY
from launch.run.status import last_metrics
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord, read_error, write_first, write_record
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles, RunFiles
from trainer.records.sizes import size_text

_TAIL_LINES = 15
# Nothing is wrong with the rank that says it: any other would have met the same file.
_OF_FILES = ("DataError", "ModelError")


def record_death(
    files: AttemptFiles,
    rank: int,
    code: int,
    *,
    out_of_memory: bool | None = None,
    own: Collection[int] | None = None,
) -> None:
    """Make error.json speak for the first rank that died, if it could not speak for itself.

    `out_of_memory`: what the kernel's counters say; None: they could not be read. `own`: the ranks
    of this node, of which it was the first; None: of all.

    A rank that was killed wrote nothing; what another rank wrote meanwhile ("connection reset")
    is only the echo, and is kept as such.
    """
    known = read_failure(files)
    if code >= 0:
        write_first(files.error, _exited(files, rank, code))
        return
    if known is not None and known.rank == rank:
        return
    is_elsewhere = known is not None and own is not None and known.rank not in own
    if is_elsewhere and known is not None and not known.is_echo:
        return  # a rank of another node failed, and this one died of it
    echo = f"rank {known.rank} then said: {known.kind}: {known.message}" if known else ""
    write_record(files.error, _killed(files, rank, -code, echo, out_of_memory))


def _killed(
    files: AttemptFiles, rank: int, number: int, echo: str, out_of_memory: bool | None
) -> ErrorRecord:
    kind, message = KILLED, f"killed by signal {number} ({_signal_name(number)})"
    if number == signal.SIGKILL and out_of_memory:
        kind, message = OUT_OF_MEMORY, f"ended by the kernel: memory ran out{_memory_of(files)}"
    elif number == signal.SIGKILL and out_of_memory is None:
        message += "; the kernel does that when memory runs out"
    return failed(rank, kind, message, traceback=echo)


def _memory_of(files: AttemptFiles) -> str:
    """What the plan foresaw and what the last step showed, as far as either is known."""
    said = []
    try:
        foreseen = read_json(files.plan)["memory_per_rank"]
        said.append(f"the plan foresaw {size_text(sum(foreseen.values()))} for a rank")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    used = last_metrics(RunFiles(files.root.parent.parent).metrics).get("memory_bytes")
    if used:
        said.append(f"its last step showed {size_text(int(used))}")
    return f" ({', '.join(said)})" if said else ""


def _exited(files: AttemptFiles, rank: int, code: int) -> ErrorRecord:
    tail = log_tail(files.rank_log(rank))
    message = f"exited with code {code} and left no error.json"
    if tail:
        message += "; its log ends with\n" + "\n".join(f"    {line}" for line in tail)
    stops = code in (Exit.REFUSED, Exit.STOP, Exit.NO_PROGRESS)
    exit_code = Exit(code) if stops else Exit.FAILED
    return failed(rank, "Exited", message, code=exit_code)


def failed(
    rank: int, kind: str, message: str, *, code: Exit = Exit.FAILED, traceback: str = ""
) -> ErrorRecord:
    """What is told in a rank's place, by who saw it fail from here."""
    return ErrorRecord(
        time=time.time(),
        rank=rank,
        host=socket.gethostname(),
        kind=kind,
        message=message,
        exit_code=int(code),
        traceback=traceback,
    )


def failure_text(files: AttemptFiles) -> str:
    """What a person is told; empty if no rank failed."""
    error = read_failure(files)
    if error is None:
        return ""
    if error.kind in (LAUNCH_FAILED, NOT_TAKEN):
        return error.message
    if error.kind in _OF_FILES and error.exit_code == Exit.STOP:
        found = f"at step {error.step} " if error.step is not None else ""
        seen = f"  found by rank {error.rank} {found}on {error.host}"
        return f"{error.message}\n{seen}\n  its log: {files.rank_log(error.rank)}"
    if error.kind in (KILLED, OUT_OF_MEMORY, HUNG, NODE_LOST, "Exited"):
        lines = [f"rank {error.rank} {_was(error)}{error.message}"]
    else:
        lines = [f"rank {error.rank} failed: {error.kind}: {error.message}"]
    if error.step is not None:
        lines.append(f"  at step {error.step} on {error.host}")
    if error.kind in (KILLED, OUT_OF_MEMORY) and error.traceback:
        lines.append(f"  {error.traceback}")
    lines.append(f"  its log: {files.rank_log(error.rank)}")
    return "\n".join(lines)


def _was(error: ErrorRecord) -> str:
    return "was " if error.kind in (KILLED, OUT_OF_MEMORY) else ""


def log_tail(log: Path, *, lines: int = _TAIL_LINES, blank: bool = False) -> list[str]:
    """The last lines of a log, as far as its last 64 KiB hold them; `blank`: with empty ones."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 64 * 1024))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if blank or line.strip()][-lines:]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def read_failure(files: AttemptFiles) -> ErrorRecord | None:
    """The first failure of an attempt, as far as it can be read."""
    try:
        return read_error(files.error)
    except (ValueError, TypeError):
        return None
