"""What follows an attempt, decided from the files it left. Standard library only.

A scheduler's exit code is no evidence (the same code stands for a crash, a preemption and a
cancelled job), so neither is used: done.json, stop.json, error.json, ended.json and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from trainer.errors import Exit
from trainer.records.attempt import (
    Done,
    ErrorRecord,
    Stop,
    read_done,
    read_error,
    read_started,
    read_stop,
)
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles

_T = TypeVar("_T")
Action = Literal["done", "again", "give_up"]
MAX_IDLE_ATTEMPTS = 3  # failures in a row without a newer checkpoint, before giving up


@dataclass(frozen=True)
class Ended:
    """ended.json, written by the agent: how every rank of its node ended.

    A code below zero is minus the signal that ended the rank, as in `subprocess`.
    """

    time: float
    codes: dict[str, int]  # by rank, as text: JSON has no other keys
    killed_by_user: bool = False  # Ctrl-C twice
    first_failed_rank: int | None = None


@dataclass(frozen=True)
class Observed:
    """What one attempt left behind."""

    attempt: int
    checkpoint_step: int  # newest complete checkpoint of the run; 0: none
    started: bool = False
    done: Done | None = None
    stop: Stop | None = None
    error: ErrorRecord | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Outcome:
    action: Action
    exit_code: Exit
    why: str


def decide(observed: Observed, *, earlier: Sequence[dict[str, Any]] = ()) -> Outcome:
    """What to do after an attempt. Pure. `earlier`: the lines of attempts.jsonl, oldest first."""
    if observed.done is not None:
        return Outcome("done", Exit.DONE, f"finished at step {observed.done.step}")
    if observed.ended is not None and observed.ended.killed_by_user:
        return Outcome("give_up", Exit.INTERRUPTED, "ended at once by a second Ctrl-C")
    if observed.error is not None:
        return _failed(observed, observed.error, earlier)
    if observed.stop is not None:
        return _stopped(observed, observed.stop)
    return _again_or_no_progress(observed, "ended without a word", earlier)


def _stopped(observed: Observed, stop: Stop) -> Outcome:
    if not _left_in_order(observed):
        kept = f"the last checkpoint is step {observed.checkpoint_step}"
        if observed.checkpoint_step == 0:
            kept = "there is no checkpoint"
        why = f"told to stop ({stop.cause}), but it did not end in time to save; {kept}"
        return Outcome("give_up" if stop.cause == "user" else "again", Exit.FAILED, why)
    action: Action = "give_up" if stop.cause == "user" else "again"
    if not observed.started:
        return Outcome(action, Exit.SAVED, f"stopped ({stop.cause}) before training began")
    why = f"stopped ({stop.cause}) and saved at step {observed.checkpoint_step}"
    return Outcome(action, Exit.SAVED, why)


def _left_in_order(observed: Observed) -> bool:
    """Whether every rank saved, or there was nothing to save yet."""
    if observed.ended is None:  # the agent died too
        return False
    if not observed.started:
        return True
    return all(code in (Exit.DONE, Exit.SAVED) for code in observed.ended.codes.values())


def _failed(observed: Observed, error: ErrorRecord, earlier: Sequence[dict[str, Any]]) -> Outcome:
    why = f"rank {error.rank} failed: {error.kind}: {_first_line(error.message)}"
    if error.exit_code in (Exit.REFUSED, Exit.STOP, Exit.NO_PROGRESS):
        return Outcome("give_up", Exit(error.exit_code), why)
    return _again_or_no_progress(observed, why, earlier)


def _again_or_no_progress(
    observed: Observed, why: str, earlier: Sequence[dict[str, Any]]
) -> Outcome:
    idle = 1
    for line in reversed(earlier):
        failed = line.get("exit_code") in (Exit.FAILED, Exit.NO_PROGRESS)
        if not failed or line.get("checkpoint_step") != observed.checkpoint_step:
            break
        idle += 1
    if idle >= MAX_IDLE_ATTEMPTS:
        why = f"{why}; {idle} attempts in a row without a new checkpoint"
        return Outcome("give_up", Exit.NO_PROGRESS, why)
    return Outcome("again", Exit.FAILED, why)


def observe(run: RunFiles, attempt: int) -> Observed:
    files = run.attempt(attempt)
    return Observed(
        attempt=attempt,
        checkpoint_step=newest_checkpoint(run),
        started=_or_none(read_started, files.started) is not None,
        done=_or_none(read_done, files.done),
        stop=_or_none(read_stop, files.stop),
        error=_or_none(read_error, files.error),
        ended=read_ended(files.ended),
    )


def newest_checkpoint(run: RunFiles) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    complete = run.checkpoints.glob("step-*/manifest.json")
    steps = (p.parent.name.removeprefix("step-") for p in complete)
    return max((int(s) for s in steps if s.isdigit()), default=0)


def write_ended(path: Path, ended: Ended) -> None:
    write_json(path, asdict(ended))


def read_ended(path: Path) -> Ended | None:
    try:
        return Ended(**read_json(path))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _or_none(read: Callable[[Path], _T | None], path: Path) -> _T | None:
    """A record that cannot be read proves nothing."""
    try:
        return read(path)
    except (ValueError, TypeError):
        return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "(no message)"
