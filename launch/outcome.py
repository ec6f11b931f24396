"""What follows an attempt, decided from the files it left. Standard library only.

A scheduler's exit code is no evidence (the same code stands for a crash, a preemption and a
cancelled job), so neither is used: done.json, stop.json, error.json, ended.json and checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from launch.run.budgets import (
    HUNG,
    KILLED,
    LAUNCH_FAILED,
    NODE_LOST,
    NOT_TAKEN,
    OUT_OF_MEMORY,
    Cause,
    RestartRules,
    cause_of_error,
    idle,
    used,
)
from launch.run.ended import Ended, how_it_ended
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
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles, step_name, step_of

_T = TypeVar("_T")
Action = Literal["done", "again", "give_up"]
RULES = RestartRules()
# For what an agent or a driver wrote itself.
_HOW = {HUNG: "", KILLED: "was ", OUT_OF_MEMORY: "was ", NODE_LOST: ""}


@dataclass(frozen=True)
class Observed:
    """What one attempt left behind."""

    attempt: int
    checkpoint_step: int  # newest complete checkpoint of the run; 0: none
    has_older: bool = False  # whether there is another one before it
    started: bool = False
    from_step: int = 0  # that it went on from; newer than any checkpoint if that lay in memory
    done: Done | None = None
    stop: Stop | None = None
    error: ErrorRecord | None = None
    ended: Ended | None = None


@dataclass(frozen=True)
class Outcome:
    """`step_back`: the next attempt goes on from the checkpoint before the newest."""

    action: Action
    exit_code: Exit
    why: str
    cause: Cause | None = None  # None: it finished
    step_back: bool = False


def decide(
    observed: Observed, *, earlier: Sequence[dict[str, Any]] = (), rules: RestartRules = RULES
) -> Outcome:
    """What to do after an attempt. Pure. `earlier`: the lines of attempts.jsonl, oldest first."""
    if observed.done is not None:
        return Outcome("done", Exit.DONE, f"finished at step {observed.done.step}")
    if observed.ended is not None and observed.ended.killed_by_user:
        why = "ended at once by a second Ctrl-C"
        return Outcome("give_up", Exit.INTERRUPTED, why, "user")
    if observed.error is not None:
        return _failed(observed, observed.error, earlier, rules)
    if observed.stop is not None:
        return _stopped(observed, observed.stop)
    return _again(observed, "ended without a word", "node", earlier, rules)


def _stopped(observed: Observed, stop: Stop) -> Outcome:
    cause: Cause = "preempt"
    if stop.cause in ("user", "time_limit"):
        cause = stop.cause
    action: Action = "give_up" if cause == "user" else "again"
    said: str = stop.cause
    if stop.detail and stop.cause in ("drain", "resize"):
        said = f"{stop.cause}: {stop.detail}"  # which node it was
    if not _left_in_order(observed):
        kept = f"the last checkpoint is step {observed.checkpoint_step}"
        if observed.checkpoint_step == 0:
            kept = "there is no checkpoint"
        why = f"told to stop ({said}), but it did not end in time to save; {kept}"
        return Outcome(action, Exit.FAILED, why, cause)
    if not observed.started:
        why = f"stopped ({said}) before training began"
        return Outcome(action, Exit.SAVED, why, cause)
    why = f"stopped ({said}) and saved at step {observed.checkpoint_step}"
    return Outcome(action, Exit.SAVED, why, cause)


def _left_in_order(observed: Observed) -> bool:
    """Whether every rank saved, or there was nothing to save yet."""
    if observed.ended is None:  # the agent died too
        return False
    if not observed.started:
        return True
    codes = observed.ended.codes.values()
    return not observed.ended.lost and all(code in (Exit.DONE, Exit.SAVED) for code in codes)


def _failed(
    observed: Observed, error: ErrorRecord, earlier: Sequence[dict[str, Any]], rules: RestartRules
) -> Outcome:
    how = _HOW.get(error.kind, f"failed: {error.kind}: ")
    why = f"rank {error.rank} {how}{_first_line(error.message)}"
    if error.kind in (LAUNCH_FAILED, NOT_TAKEN):  # there was no rank
        why = _first_line(error.message)
    cause = cause_of_error(error)
    if error.kind == NOT_TAKEN:  # nothing of the run was tried, so no budget is spent
        return Outcome("again", Exit.FAILED, why, cause)
    if error.exit_code in (Exit.REFUSED, Exit.STOP, Exit.NO_PROGRESS):
        return Outcome("give_up", Exit(error.exit_code), why, cause)
    if observed.stop is not None and observed.stop.cause == "user":
        return Outcome("give_up", Exit.FAILED, why, cause)
    return _again(observed, why, cause, earlier, rules)


def _again(
    observed: Observed,
    why: str,
    cause: Cause,
    earlier: Sequence[dict[str, Any]],
    rules: RestartRules,
) -> Outcome:
    """Start again, unless it was tried often enough."""
    spent, budget = used(earlier, cause), rules.budget(cause)
    if budget is not None and spent >= budget and rules.enabled:
        return Outcome("give_up", Exit.STOP, f"{why}; {_spent(cause, spent)}", cause)
    row = idle(earlier, max(observed.checkpoint_step, observed.from_step))
    tried = row.attempts if row.since_step_back is None else row.since_step_back
    if tried < rules.max_idle:
        return Outcome("again", Exit.FAILED, why, cause)
    why = f"{why}; {row.attempts} attempts in a row without a new checkpoint"
    # Not for what fails before anything is loaded: the checkpoint has no part in it.
    older = observed.has_older or 0 < observed.checkpoint_step < observed.from_step
    may_step_back = rules.enabled and observed.started and older
    if may_step_back and row.since_step_back is None:
        return Outcome("again", Exit.FAILED, why, cause, step_back=True)
    return Outcome("give_up", Exit.NO_PROGRESS, why, cause)


def _spent(cause: Cause, spent: int) -> str:
    if cause == "oom":
        return (
            "memory ran out again after a restart: a smaller batch.micro_batch_size, a higher "
            "engine stage or offload needs less (longhaul plan says how much)"
        )
    if cause == "hardware":
        return "ranks differed again after a restart: leave out the machine that is named"
    times = "once" if spent == 1 else f"{spent} times"
    what = f"started again {times} for this cause ({cause})" if spent else "not started again"
    return f"{what}, as restart.{cause} allows"


def observe(run: RunFiles, attempt: int) -> Observed:
    files = run.attempt(attempt)
    steps = complete_checkpoints(run)
    started = _or_none(read_started, files.started)
    return Observed(
        attempt=attempt,
        checkpoint_step=steps[-1] if steps else 0,
        has_older=len(steps) > 1,
        started=started is not None,
        from_step=started.step if started is not None else 0,
        done=_or_none(read_done, files.done),
        stop=_or_none(read_stop, files.stop),
        error=_or_none(read_error, files.error),
        ended=how_it_ended(files),
    )


def newest_checkpoint(run: RunFiles) -> int:
    """Step of the newest complete checkpoint; 0 if there is none."""
    return max(complete_checkpoints(run), default=0)


def where_it_goes_on(run: RunFiles) -> str:
    """ "from step 40": for people. Step 0 is there only where it was imported."""
    saved = complete_checkpoints(run)
    if not saved and (url := _copies_of(run)):
        return f"from its newest copy in {url}, or from the start if there is none"
    if not saved:
        return "from the start: nothing was saved yet"
    return f"from step {saved[-1]:,}" if saved[-1] else "from step 0, which was imported"


def _copies_of(run: RunFiles) -> str:
    """Where the newest attempt sends copies of its steps; "" if it does not."""
    plans = sorted(run.attempts.glob("[0-9]*/plan.json"))
    try:
        return str(read_json(plans[-1])["config"]["checkpoint"]["remote"]["url"] or "")
    except (OSError, ValueError, KeyError, TypeError, IndexError):
        return ""


def complete_checkpoints(run: RunFiles) -> list[int]:
    """Their steps, oldest first."""
    complete = run.checkpoints.glob("step-*/manifest.json")
    return sorted(s for p in complete if (s := step_of(p.parent.name)) is not None)


def unusual_steps(run: RunFiles) -> list[str]:
    """What may be a checkpoint and is none that can be loaded: without its manifest, misnamed."""
    complete = {step_name(step) for step in complete_checkpoints(run)}
    left = (p.name for p in run.checkpoints.glob("step-*") if p.name not in complete)
    return sorted(n for n in left if ".incoming-" not in n and not n.endswith(".removing"))


def quarantined(run: RunFiles) -> list[str]:
    """The checkpoints that were set aside, damaged or whole: kept for a person to look at."""
    return sorted(p.name for p in (run.checkpoints / "quarantine").glob("step-*"))


def _or_none(read: Callable[[Path], _T | None], path: Path) -> _T | None:
    """A record that cannot be read proves nothing."""
    try:
        return read(path)
    except (ValueError, TypeError):
        return None


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else "(no message)"
