"""attempts.jsonl: one line an attempt, written when it has ended. Standard library only."""

from __future__ import annotations

import time
from typing import Any

from launch.outcome import Outcome, observe
from trainer.errors import Exit
from trainer.records.attempt import read_started
from trainer.records.json_file import append_line, read_lines
from trainer.records.run_files import RunFiles


def read_lines_of(run: RunFiles) -> list[dict[str, Any]]:
    return list(read_lines(run.attempts_log))


def concluded(run: RunFiles, attempt: int) -> Outcome | None:
    """How an attempt that has its line ended."""
    for line in read_lines_of(run):
        if line.get("attempt") == attempt:
            code = Exit(line["exit_code"])
            return Outcome(line["action"], code, line["why"], line.get("cause"))
    return None


def close_attempt(run: RunFiles, attempt: int, outcome: Outcome) -> None:
    """Add the attempt's line; an attempt has one, whoever writes it first."""
    if any(line.get("attempt") == attempt for line in read_lines_of(run)):
        return
    observed = observe(run, attempt)
    files = run.attempt(attempt)
    started = read_started(files.started) if observed.started else None
    line = {
        "attempt": attempt,
        "started": started.time if started else None,
        "from_step": started.step if started else None,
        "world_size": started.world_size if started else None,
        "ended": observed.ended.time if observed.ended else time.time(),
        "action": outcome.action,
        "exit_code": int(outcome.exit_code),
        "why": outcome.why,
        "cause": outcome.cause,
        "step_back": outcome.step_back,
        "checkpoint_step": observed.checkpoint_step,
        "codes": observed.ended.codes if observed.ended else {},
    }
    append_line(run.attempts_log, line)
