"""What follows an attempt, from what it left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.outcome import Observed, Outcome, decide, observe, where_it_goes_on
from launch.run.budgets import NOT_TAKEN, RestartRules
from launch.run.ended import Ended, write_ended
from launch.run.lease import Lease
from launch.run.liveness import own_mark, write_mark
from launch.run.not_taken import note_if_not_taken
from launch.run.run_folder import new_attempt
from trainer.errors import Exit, Refused
from trainer.records.attempt import Done, ErrorRecord, Started, Stop, write_record
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles

DONE = Done(time=9.0, step=300, loss=2.5)


def error(exit_code: int = 76, *, rank: int = 1) -> ErrorRecord:
    return ErrorRecord(
        time=5.0, rank=rank, host="a", kind="WorldError", message="lost\nmore", exit_code=exit_code
    )


def stop(cause: Any = "scheduler") -> Stop:
    return Stop(cause=cause, time=4.0)


def left(**given: Any) -> Observed:
    return Observed(**{"attempt": 4, "checkpoint_step": 100, "started": True} | given)


def ended(*codes: int, killed: bool = False) -> Ended:
    by_rank = {str(rank): code for rank, code in enumerate(codes)}
    return Ended(time=9.0, codes=by_rank, killed_by_user=killed)


SAVED = ended(75, 75)


@pytest.mark.parametrize(
    ("observed", "action", "code"),
    [
        (left(done=DONE), "done", Exit.DONE),
        (left(done=DONE, stop=stop()), "done", Exit.DONE),
        (left(stop=stop(), ended=SAVED), "again", Exit.SAVED),
        (left(stop=stop("time_limit"), ended=SAVED), "again", Exit.SAVED),
        (left(stop=stop("drain"), ended=SAVED), "again", Exit.SAVED),
        (left(stop=stop("user"), ended=SAVED), "give_up", Exit.SAVED),
        (left(stop=stop(), ended=ended(-15, -15), started=False), "again", Exit.SAVED),
        (left(stop=stop(), ended=ended(75, -9)), "again", Exit.FAILED),
        (left(stop=stop(), ended=None), "again", Exit.FAILED),
        (left(stop=stop("user"), ended=ended(-9, -9)), "give_up", Exit.FAILED),
        (left(stop=stop(), error=error(), ended=ended(76, 76)), "again", Exit.FAILED),
        (left(error=error(76)), "again", Exit.FAILED),
        (left(error=error(78)), "give_up", Exit.STOP),
        (left(error=error(2)), "give_up", Exit.REFUSED),
        (left(error=error(79)), "give_up", Exit.NO_PROGRESS),
        (left(), "again", Exit.FAILED),
        (left(ended=ended(-9, -9, killed=True), stop=stop()), "give_up", Exit.INTERRUPTED),
    ],
)
def test_the_files_decide(observed: Observed, action: str, code: Exit) -> None:
    outcome = decide(observed)
    assert (outcome.action, outcome.exit_code) == (action, code)


def test_the_reason_is_one_line_that_names_the_rank() -> None:
    assert decide(left(error=error())).why == "rank 1 failed: WorldError: lost"


def line(checkpoint_step: int, exit_code: int = 76) -> dict[str, Any]:
    return {"checkpoint_step": checkpoint_step, "exit_code": exit_code}


@pytest.mark.parametrize(
    ("earlier", "code"),
    [
        ([line(100), line(100)], Exit.NO_PROGRESS),
        ([line(100)], Exit.FAILED),
        ([line(50), line(100)], Exit.FAILED),  # the checkpoint moved on
        ([line(100), line(100, 75)], Exit.FAILED),  # a preemption is no failure
        ([line(100), line(100), line(100, 79)], Exit.FAILED),  # somebody looked at it since
        ([line(100), line(50), line(100)], Exit.NO_PROGRESS),  # saved again is no progress
    ],
)
def test_three_failures_without_a_new_checkpoint_are_no_progress(
    earlier: list[dict[str, Any]], code: Exit
) -> None:
    assert decide(left(error=error()), earlier=earlier).exit_code == code


AGAIN = RestartRules(enabled=True)


def life(dies_at: Callable[[int], list[int]], *, rules: RestartRules = AGAIN) -> list[Outcome]:
    """Attempts until one needs no other. `dies_at`: step gone on from -> checkpoints it leaves."""
    lines: list[dict[str, Any]] = []
    outcomes: list[Outcome] = []
    steps: list[int] = []
    while not outcomes or outcomes[-1].action == "again":
        assert len(outcomes) < 50
        steps = sorted({*steps, *dies_at(max(steps, default=0))})[-2:]
        seen = left(
            checkpoint_step=max(steps, default=0), has_older=len(steps) > 1, error=error(76)
        )
        outcomes.append(decide(seen, earlier=lines, rules=rules))
        lines.append(
            {
                "checkpoint_step": seen.checkpoint_step,
                "exit_code": int(outcomes[-1].exit_code),
                "action": outcomes[-1].action,
                "cause": outcomes[-1].cause,
                "step_back": outcomes[-1].step_back,
            }
        )
        if outcomes[-1].step_back:
            steps.pop()
    return outcomes


def test_a_state_that_dies_at_the_same_step_every_time_ends_after_six_attempts() -> None:
    outcomes = life(lambda step: [s for s in (50, 100) if s > step])
    assert [o.step_back for o in outcomes] == [False, False, True, False, False, False]
    assert outcomes[-1].exit_code == Exit.NO_PROGRESS
    assert "6 attempts in a row without a new checkpoint" in outcomes[-1].why


def test_what_fails_before_anything_is_loaded_costs_no_checkpoint() -> None:
    seen = left(error=error(), has_older=True, started=False)
    outcome = decide(seen, earlier=[line(100), line(100)], rules=AGAIN)
    assert (outcome.exit_code, outcome.step_back) == (Exit.NO_PROGRESS, False)


def test_without_an_older_checkpoint_three_attempts_are_enough() -> None:
    assert [o.exit_code for o in life(lambda step: [])] == [76, 76, Exit.NO_PROGRESS]


def test_a_run_that_goes_on_between_failures_is_started_again_as_its_budget_says() -> None:
    outcomes = life(lambda step: [step + 10], rules=RestartRules(enabled=True, crash=7))
    assert len(outcomes) == 8
    assert outcomes[-1].exit_code == Exit.STOP
    assert outcomes[-1].why.endswith("started again 7 times for this cause (crash), as "
                                     "restart.crash allows")  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "message", "code", "cause", "restarts"),
    [
        ("Killed", "killed by signal 9", 76, "crash", 100),
        ("ValueError", "nan", 76, "crash", 100),
        ("Hung", "stood still", 76, "hang", 20),
        ("OutOfMemory", "killed by signal 9", 76, "oom", 1),
        ("OutOfMemoryError", "CUDA out of memory. Tried", 76, "oom", 1),
        ("RuntimeError", "DefaultCPUAllocator: can't allocate memory", 76, "oom", 1),
        ("DataError", "shard 3 has a flipped byte", 78, "data", 0),
        ("NonFiniteStep", "step 3: loss nan", 78, "numerics", 0),
        ("ReplicasDiffer", "step 4: the weights are not the same", 76, "hardware", 2),
        ("RunFolderError", "all are damaged", 78, "config", 0),
        ("ConfigError", "no such", 2, "config", 0),
    ],
)
def test_every_cause_has_its_budget(
    kind: str, message: str, code: int, cause: str, restarts: int
) -> None:
    failed = ErrorRecord(time=1.0, rank=0, host="a", kind=kind, message=message, exit_code=code)
    lines: list[dict[str, Any]] = []
    while True:
        seen = left(checkpoint_step=len(lines) + 1, error=failed)
        outcome = decide(seen, earlier=lines, rules=AGAIN)
        assert outcome.cause == cause
        if outcome.action == "give_up":
            break
        lines.append({"checkpoint_step": len(lines) + 1, "exit_code": 76, "cause": cause})
    assert len(lines) == restarts
    if cause == "oom":
        assert "batch.micro_batch_size" in outcome.why


def test_preemptions_cost_no_restart() -> None:
    lines = [{"checkpoint_step": 1, "exit_code": 75, "cause": "preempt"}] * 500
    outcome = decide(left(checkpoint_step=1, stop=stop(), ended=SAVED), earlier=lines, rules=AGAIN)
    assert (outcome.action, outcome.cause) == ("again", "preempt")


def test_what_no_place_took_is_no_failure_of_the_run() -> None:
    refused = replace(error(), kind=NOT_TAKEN, message="sbatch did not take the job: no more")
    failures = [line(100), line(100)]
    outcome = decide(left(error=refused, started=False), earlier=failures, rules=AGAIN)
    assert outcome == Outcome("again", Exit.FAILED, refused.message, "refused")
    spent = [line(100) | {"cause": "refused"}] * 5
    assert decide(left(error=error()), earlier=spent, rules=AGAIN).action == "again"


def test_only_an_attempt_that_never_began_is_told_that_it_was_not_taken(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    first = new_attempt(run)
    note_if_not_taken(run, 1, Refused("port 5 is taken"))
    assert observe(run, 1).error is not None
    assert decide(observe(run, 1)).why == "port 5 is taken"
    for number in (2, 3):
        new_attempt(run)
        if number == 2:
            Lease.take(run.attempt(2))  # it began: its ranks speak for themselves
        note_if_not_taken(run, 2, Refused("port 5 is taken"))  # 3 is another's, and may wait
        assert observe(run, number).error is None
    write_mark(run.attempt(3).agent, own_mark())  # ... or it followed in this process
    note_if_not_taken(run, 2, Refused("port 6 is taken"))
    assert decide(observe(run, 3)).why == "port 6 is taken"
    assert decide(observe(run, first.number)).why == "port 5 is taken"


def test_a_user_who_asked_to_stop_is_not_answered_by_a_restart() -> None:
    assert decide(left(stop=stop("user"), error=error()), rules=AGAIN).action == "give_up"


def test_what_is_observed_is_what_the_files_say(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    files = run.attempt(2)
    files.root.mkdir(parents=True)
    for step, complete in ((100, True), (200, True), (300, False)):
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        if complete:
            (folder / "manifest.json").write_text("{}")
    write_record(files.started, Started(time=1.0, step=100, world_size=2, host="a"))
    write_record(files.stop, stop("user"))
    files.error.write_text("{ torn")
    write_ended(files.ended, SAVED)
    expected = Observed(
        attempt=2,
        checkpoint_step=200,
        has_older=True,
        started=True,
        from_step=100,
        stop=stop("user"),
        ended=SAVED,
    )
    assert observe(run, 2) == expected


def test_the_decision_needs_the_standard_library_only() -> None:
    import subprocess
    import sys

    code = (
        "import launch.outcome, launch.agent, sys;"
        "heavy = {'pydantic', 'torch', 'hydra', 'rich', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([], "from the start: nothing was saved yet"),
        ([0], "from step 0, which was imported"),
        ([0, 1200], "from step 1,200"),
    ],
)
def test_where_a_run_goes_on_from_is_told_from_what_is_there(
    tmp_path: Path, steps: list[int], said: str
) -> None:
    run = RunFiles(tmp_path)
    for step in steps:
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
        (run.checkpoints / f"step-{step:08d}" / "manifest.json").touch()
    (run.checkpoints / "step-00009999").mkdir(parents=True)  # no manifest: it is none
    assert where_it_goes_on(run) == said


def test_a_run_that_came_without_its_steps_goes_on_from_its_copies(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    run.attempt(2).root.mkdir(parents=True)
    remote = {"url": "s3://b/p"}
    write_json(run.attempt(2).plan, {"config": {"checkpoint": {"remote": remote}}})
    assert where_it_goes_on(run).startswith("from its newest copy in s3://b/p, or from the start")
