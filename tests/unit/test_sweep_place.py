"""What becomes of a trial, from the folder that its run has left; what it has cost; who goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from launch.node.inbox import SignalInbox
from launch.run.ended import Ended, write_ended
from launch.sweep.beginning import STEP_METRICS
from launch.sweep.brackets import brackets_of, steps_of
from launch.sweep.cost import cost_of
from launch.sweep.folder import SweepFiles
from launch.sweep.journal import Trial
from launch.sweep.place import Runs
from launch.sweep.rungs import at_step, best_of, goes_on, is_behind, rungs
from trainer.config.schema import Config
from trainer.config.sections.sweep import PrunerSection
from trainer.errors import Exit
from trainer.records.attempt import PAUSE, Done, ErrorRecord, Started, Stop, write_record
from trainer.records.ledger import Event
from trainer.records.run_files import AttemptFiles
from trainer.reports import StepReport

TRIAL = Trial(1, {}, (), state="active")


def nobody(trial: Trial) -> Config:
    raise AssertionError(trial)


def place(root: Path) -> Runs:
    files = SweepFiles(root / "lr")
    (files.root / "settings").mkdir(parents=True)
    return Runs(files, nobody, SignalInbox())


def attempt(where: Runs, number: int = 1) -> AttemptFiles:
    """One that has begun, and whose agent is not there any more."""
    run = where.files.run(1)
    files = run.attempt(number)
    files.root.mkdir(parents=True)
    record = {"run_id": "1", "name": run.name, "created": 0.0, "frozen_hash": "", "versions": {}}
    run.run_json.write_text(json.dumps({"format": 1, **record, "config": {}}))
    write_record(files.started, Started(time.time(), 0, 2, "here"))
    return files


def failed(kind: str, message: str, code: Exit) -> ErrorRecord:
    return ErrorRecord(time.time(), 0, "here", kind, message, int(code))


def how(where: Runs) -> tuple[str, str]:
    (seen,) = where.look([TRIAL])
    return seen.how, seen.why


def test_a_trial_that_finished(tmp_path: Path) -> None:
    write_record(attempt(where := place(tmp_path)).done, Done(time.time(), 12, 2.0))
    assert how(where)[0] == "finished"


@pytest.mark.parametrize(
    ("kind", "message", "code", "expected"),
    [
        ("RuntimeError", "boom", Exit.FAILED, "again"),
        ("NodeLost", "node2 went away", Exit.FAILED, "again"),
        ("NonFiniteStep", "loss is NaN", Exit.STOP, "diverged"),
        ("DataError", "line 7: not UTF-8", Exit.STOP, "refused"),
        ("ModelError", "no such head", Exit.STOP, "refused"),
    ],
)
def test_a_trial_that_failed_is_told_from_one_that_is_bad(
    tmp_path: Path, kind: str, message: str, code: Exit, expected: str
) -> None:
    write_record(attempt(where := place(tmp_path)).error, failed(kind, message, code))
    seen, why = how(where)
    assert seen == expected
    assert message in why


@pytest.mark.parametrize(
    ("cause", "expected"),
    [("user", "stopped"), ("scheduler", "preempted"), ("time_limit", "preempted")],
)
def test_a_trial_that_was_told_to_stop(tmp_path: Path, cause: Any, expected: str) -> None:
    files = attempt(where := place(tmp_path))
    write_record(files.stop, Stop(cause, time.time()))
    write_ended(files.ended, Ended(time.time(), {"0": 75, "1": 75}))
    assert how(where)[0] == expected


def test_an_agent_that_was_killed_is_started_again(tmp_path: Path) -> None:
    attempt(where := place(tmp_path))
    assert how(where) == ("again", "ended without a word")


def test_what_was_refused_before_there_was_a_run_is_said_in_its_words(tmp_path: Path) -> None:
    where = place(tmp_path)
    said = "1 problem in the configuration\n  1. resources.nodes: too many\n     try: fewer"
    where.files.log(1).write_text(said)
    child = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    child.wait()
    where._children[1] = child
    assert how(where) == ("refused", "resources.nodes: too many")
    del where._children[1]  # the next sweeper does not know how it ended
    assert how(where)[0] == "again"


def test_values_are_read_again_once_there_are_more(tmp_path: Path) -> None:
    attempt(where := place(tmp_path))
    path = where.files.run(1).metrics
    assert where.points(TRIAL, "eval_loss") == []
    lines: list[dict[str, Any]] = [
        {"kind": "eval", "step": 4, "eval_loss": 3.0, "eval_seconds": 1.0},
        {"kind": "step", "step": 5, "loss": 9.0},
        {"kind": "eval", "step": 8, "eval_loss": 2.0},
        {"kind": "eval", "step": 8, "eval_loss": 2.5},  # done again by a later attempt
        {"kind": "eval", "step": 8, "samples": [["a", "b"]], "eval_seconds": 1.0},
    ]
    for line in lines:
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        where.points(TRIAL, "eval_loss")
    assert where.points(TRIAL, "eval_loss") == [(4, 3.0), (8, 2.5)]
    assert where.points(TRIAL, "loss") == [(5, 9.0)]
    assert where.reported(TRIAL, "eval_accuracy") == ["eval_loss"]


def test_a_signal_or_a_file_ends_the_wait(tmp_path: Path) -> None:
    where = place(tmp_path)
    with where.inbox:
        assert not where.wait(0.001)
        signal.raise_signal(signal.SIGTERM)
        assert where.wait(60)
        where.files.stop.touch()
        assert where.wait(0.001)


# --- what it has cost ----------------------------------------------------------------------------


def event(name: str, clock: float, **facts: Any) -> Event:
    return Event(name, 1, 1000.0 + clock, clock, "boot", facts)


def test_the_cost_is_that_of_all_attempts_with_the_ranks_they_had() -> None:
    first = [event("attempt", 10, world_size=4), event("ended", 20)]
    second = [event("attempt", 50, world_size=2), event("spent", 65)]
    assert cost_of([], now=5000.0) == 0
    assert cost_of(first, now=None) == 40
    assert cost_of(first, now=1090.0) == 40  # it is over, whatever the time is
    assert cost_of([*first, *second], now=None) == 40 + 30
    assert cost_of([*first, *second], now=1090.0) == 40 + 80


# --- who goes on ---------------------------------------------------------------------------------


def test_rungs_lie_a_factor_apart_below_the_last_step() -> None:
    assert rungs(first_step=10, factor=3, total=100) == (10, 30, 90)
    assert rungs(first_step=10, factor=3, total=90) == (10, 30)
    assert rungs(first_step=10, factor=2, total=10) == ()


def test_a_value_counts_at_the_first_step_that_has_reached_the_rung() -> None:
    assert at_step([(4, 1.0), (8, 2.0)], 5) == 2.0
    assert at_step([(4, 1.0)], 4) == 1.0
    assert at_step([(4, 1.0)], 5) is None


def test_the_best_third_of_those_that_have_been_there_goes_on() -> None:
    assert goes_on(9.0, [], factor=3)  # the first
    assert not goes_on(9.0, [8.0], factor=3)
    assert goes_on(7.0, [8.0], factor=3)
    assert goes_on(2.0, [1.0, 3.0, 4.0, 5.0, 6.0], factor=3)  # the second of six
    assert not goes_on(3.0, [1.0, 2.0, 4.0, 5.0, 6.0], factor=3)


def test_of_a_whole_bracket_the_best_third_goes_on_and_at_least_one() -> None:
    assert best_of({1: 3.0, 2: 1.0, 3: 2.0}, factor=3) == [2]
    assert best_of({1: 3.0, 2: 1.0}, factor=3) == [2]
    assert best_of(dict.fromkeys(range(1, 7), 1.0), factor=3) == [1, 2]  # of equals the first


def test_the_median_is_of_what_the_others_came_to_at_the_same_step() -> None:
    others = [[(10, 1.0), (20, 0.5)], [(10, 2.0)], [(10, 3.0), (20, 0.7)]]
    assert is_behind([(10, 2.5)], others, first_step=10, min_trials=3) == 10
    assert is_behind([(10, 2.0)], others, first_step=10, min_trials=3) is None
    assert is_behind([(10, 2.5)], others, first_step=20, min_trials=3) is None
    assert is_behind([(10, 2.5), (20, 9.0)], others, first_step=10, min_trials=3) is None
    assert is_behind([(10, 2.5), (20, 9.0)], others, first_step=10, min_trials=2) == 20


def rules(kind: str, *, first_step: int = 1, factor: int = 3) -> PrunerSection:
    return PrunerSection(kind=kind, first_step=first_step, factor=factor, min_trials=3)  # type: ignore[arg-type]


def test_brackets_of_hyperband_are_those_of_its_paper() -> None:
    """Li et al. 2018, table 1: R = 81, eta = 3."""
    found = brackets_of(rules("hyperband"), (143 + 81 + 10,), last_step=81)
    sizes = [one.last - one.first + 1 for one in found]
    assert sizes == [81, 34, 15, 8, 5, 81, 10]  # and the same once more, as far as trials go
    assert [one.steps for one in found[:5]] == [(1, 3, 9, 27), (3, 9, 27), (9, 27), (27,), ()]
    assert steps_of(82, found) == (3, 9, 27)
    assert steps_of(143, found) == ()
    assert steps_of(144, found) == (1, 3, 9, 27)


def test_trials_that_are_added_meet_among_themselves() -> None:
    halving = brackets_of(rules("halving"), (9, 12), last_step=9)
    assert [(one.first, one.last, one.steps) for one in halving] == [
        (1, 9, (1, 3)),
        (10, 12, (1, 3)),
    ]
    added = brackets_of(rules("hyperband"), (10, 14), last_step=9)
    assert [(one.first, one.last) for one in added] == [(1, 9), (10, 10), (11, 14)]
    assert added[1].steps == (3,)
    assert added[2].steps == (1, 3)
    assert brackets_of(rules("median"), (9,), last_step=9) == ()


def test_a_trial_that_left_where_it_was_to_pause(tmp_path: Path) -> None:
    files = attempt(where := place(tmp_path))
    write_record(files.stop, Stop("user", time.time(), PAUSE))
    write_ended(files.ended, Ended(time.time(), {"0": 75, "1": 75}))
    assert how(where)[0] == "paused"


def test_the_metrics_of_a_step_are_those_that_steps_report() -> None:
    reported = {one.name for one in fields(StepReport)} - {"step", "applied"}
    assert set(STEP_METRICS) == reported
