"""Why attempts end, and how often a run is started again for each reason. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord

Cause = Literal[
    "crash",
    "hang",
    "node",
    "oom",
    "preempt",
    "time_limit",
    "user",
    "data",
    "numerics",
    "config",
    "hardware",
    "refused",
]
UNLIMITED: tuple[Cause, ...] = ("preempt", "time_limit", "refused")
HUNG = "Hung"  # kind of the error that the agent writes for a rank that stands still
KILLED = "Killed"  # ... for a rank that a signal ended
LAUNCH_FAILED = "LaunchFailed"  # ... where a scheduler started no ranks at all
NOT_TAKEN = "NotTaken"  # ... by who handed it over, where the place did not take it
NODE_LOST = "NodeLost"  # ... by a driver, where a node went away under its ranks
OUT_OF_MEMORY = "OutOfMemory"  # ... where the kernel says that it was its out-of-memory killer
_OOM_KINDS = (OUT_OF_MEMORY, "OutOfMemoryError", "MemoryError")
_OOM_TEXTS = ("out of memory", "can't allocate memory")
_CLOSING = (Exit.DONE, Exit.REFUSED, Exit.STOP, Exit.NO_PROGRESS, Exit.INTERRUPTED)


@dataclass(frozen=True)
class RestartRules:
    """The section `restart` of the settings, as an agent reads it: restarts allowed per cause.

    `enabled`: whether somebody starts the next attempt without being asked. `wait_s`: how long too
    few nodes are waited for.
    """

    enabled: bool = False
    standby: bool = False
    max_idle: int = 3
    crash: int = 100
    hang: int = 20
    node: int = 100
    oom: int = 1
    hardware: int = 2
    wait_s: float = 3600.0

    def budget(self, cause: Cause) -> int | None:
        """None: no limit. What only a person can mend is never started again."""
        if cause in UNLIMITED:
            return None
        return int(getattr(self, cause, 0))


def cause_of_error(error: ErrorRecord) -> Cause:
    """From the first failing rank's own words, never from an exit code that may mean anything."""
    if error.kind == HUNG:
        return "hang"
    if error.kind == NOT_TAKEN:
        return "refused"
    if error.kind in (LAUNCH_FAILED, NODE_LOST):
        return "node"
    text = error.message.lower()
    if error.kind in _OOM_KINDS or (
        error.kind == "RuntimeError" and any(said in text for said in _OOM_TEXTS)
    ):
        return "oom"
    if error.kind == "DataError":
        return "data"
    if error.kind == "NonFiniteStep":
        return "numerics"
    if error.kind == "ReplicasDiffer":
        return "hardware"
    stops = error.exit_code in (Exit.REFUSED, Exit.STOP, Exit.NO_PROGRESS)
    return "config" if stops else "crash"


def window(earlier: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of attempts.jsonl since the run last finished or somebody had to look at it."""
    found: list[Mapping[str, Any]] = []
    for line in reversed(earlier):
        if line.get("action") in ("done", "give_up") or line.get("exit_code") in _CLOSING:
            break
        found.insert(0, line)
    return found


def used(earlier: Sequence[Mapping[str, Any]], cause: Cause) -> int:
    """How many attempts of the window ended for that cause: as many restarts were spent on it."""
    return sum(line.get("cause") == cause for line in window(earlier))


@dataclass(frozen=True)
class Idle:
    """Failures in a row that ended at the same newest checkpoint, the one just ended included."""

    attempts: int
    since_step_back: int | None  # None: no step back in that row


def idle(earlier: Sequence[Mapping[str, Any]], step: int) -> Idle:
    """Progress is a checkpoint newer than any before: one that is saved again is none.

    One in memory shows by the step that the next attempt begins at. `step`: of the newest of
    either, once the last attempt had ended.
    """
    marks, high = [], 0
    for line in earlier:
        high = max(high, int(line.get("checkpoint_step", 0)), int(line.get("from_step") or 0))
        marks.append(high)
    if step > high:
        return Idle(1, None)
    count, since = 1, None
    lines = window(earlier)
    for line, mark in zip(reversed(lines), reversed(marks), strict=False):
        if line.get("exit_code") == Exit.SAVED or line.get("cause") in (*UNLIMITED, "user"):
            continue  # a preemption is no failure
        if mark < high:
            break
        if line.get("step_back") and since is None:
            since = count
        count += 1
    return Idle(count, since)
