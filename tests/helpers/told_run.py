"""A run folder of two attempts as its writers leave it: one was killed, the next went on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.run.run_folder import FORMAT
from tests.helpers.reports import eval_report, save_report, step_report
from trainer.observers.jsonl import JsonLines
from trainer.records.attempt import Done, Started, write_record
from trainer.records.json_file import append_line
from trainer.records.lineage import Descent, write_descent
from trainer.records.run_files import RunFiles

T0 = 1_795_000_000.0
_CHANGE = {
    "where": "optimizer.learning_rate",
    "old": 0.001,
    "new": 0.002,
    "kind": "branch",
    "meaning": "the next step's rate is <twice> it",
    "numbers": {},
}


def told_run(root: Path, name: str = "told", *, learning_rate: float = 1e-3) -> RunFiles:
    """Steps 1 to 40, a kill after 40, from 30 to 60 again: ten steps are done twice."""
    run = RunFiles(root / name)
    for number in (1, 2):
        run.attempt(number).submission.mkdir(parents=True)
        run.attempt(number).plan.write_text(json.dumps(_plan(name, number, learning_rate)))
    write_run_json(run)
    _metrics(run, attempt=1, steps=range(1, 41))
    _metrics(run, attempt=2, steps=range(31, 61))
    for number, changes in ((1, ()), (2, (_CHANGE,))):
        write_descent(
            run.lineage,
            Descent(
                attempt=number, parent=number - 1 or None, cause="", world_size=2,
                bitexact=not changes, changes=changes, versions={"torch": "2.13.0"}, time=T0,
            ),
        )  # fmt: skip
    append_line(run.lineage, {"event": "loaded", "attempt": 2, "step": 30, "time": T0})
    write_record(run.attempt(1).started, Started(T0 + 10, 0, 2, "a"))
    write_record(run.attempt(2).started, Started(T0 + 110, 30, 2, "a"))
    write_record(run.attempt(2).done, Done(T0 + 200, 60, 0.5))
    _end(run, 1, T0 + 10, T0 + 90, why="rank 1 was killed by signal 9", cause="crash", code=76)
    _end(run, 2, T0 + 110, T0 + 200, why="finished at step 60", cause=None, code=0)
    _ledger(run)
    return run


def write_run_json(run: RunFiles) -> None:
    record = {"run_id": "0123456789abcdef", "name": run.name, "created": T0, "frozen_hash": ""}
    more = {"format": FORMAT, "config": {"steps": {"total": 60}}, "versions": {}}
    run.run_json.write_text(json.dumps(record | more))


def _plan(name: str, attempt: int, learning_rate: float) -> Mapping[str, Any]:
    return {
        "config": {
            "run": {"name": name, "seed": 1},
            "steps": {"total": 60},
            "optimizer": {"learning_rate": learning_rate, "kind": "adamw"},
            "data": {"paths": ["<a&b>.txt"]},
        },
        "attempt": attempt,
        "run_id": name,
        "world_size": 2,
        "device": "cpu",
        "num_parameters": 1_000_000,
        "stores": [
            {"source": "books", "weight": 3.0, "train_tokens": 1500, "held_out_tokens": 50},
            {"source": "code", "weight": 1.0, "train_tokens": 1500, "held_out_tokens": 0},
        ],
    }


def _metrics(run: RunFiles, *, attempt: int, steps: range) -> None:
    lines = JsonLines(run.metrics, attempt=attempt, attempt_facts={"step": steps[0] - 1})
    for step in steps:
        lines.on_step(step_report(step, loss=4 + math.cos(step / 5) / step, grad_norm=1 / step))
        if step % 20 == 0:
            lines.on_eval(eval_report(step))
            lines.on_save(save_report(step))
    lines.close()


def _end(
    run: RunFiles, attempt: int, started: float, ended: float, *,
    why: str, cause: str | None, code: int,
) -> None:  # fmt: skip
    line: dict[str, Any] = {
        "attempt": attempt, "started": started, "from_step": 0 if attempt == 1 else 30,
        "world_size": 2, "ended": ended, "action": "done" if code == 0 else "restart",
        "exit_code": code, "why": why, "cause": cause, "step_back": False, "checkpoint_step": 60,
        "codes": {},
    }  # fmt: skip
    append_line(run.attempts_log, line)


def _ledger(run: RunFiles) -> None:
    """200 s: 10 of starting, 80 in attempt 1 (40 steps), 20 idle, 90 in attempt 2 (30 steps)."""
    path = run.ledger(0)
    path.parent.mkdir()
    first = {"seconds": {"imports": 5.0, "step": 78.0, "first": 2.0}}
    second = {"seconds": {"imports": 5.0, "step": 58.0, "first": 2.0, "save": 20.0}}
    for attempt, begin, end, spent, steps in (
        (1, 0.0, 90.0, first, {"first_step": 1, "made": 40, "furthest": 40}),
        (2, 110.0, 200.0, second, {"first_step": 31, "made": 30, "furthest": 60}),
    ):
        for event, clock, facts in (
            ("attempt", begin, {"ranks": [0, 1], "world_size": 2}),
            ("rank", begin + 1, {"rank": 0, "pid": 1}),
            ("spent", end, {"rank": 0, "phase": "end", "since": end, **spent, **steps}),
            ("ended", end, {"exit_code": 0, "why": ""}),
        ):
            line: dict[str, Any] = {
                "event": event,
                "attempt": attempt,
                "time": T0 + clock,
                "clock": clock,
            }
            append_line(path, line | {"boot": "b"} | facts)
