"""What follows an attempt, from what it left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.outcome import Ended, Observed, decide, observe, write_ended
from trainer.errors import Exit
from trainer.records.attempt import Done, ErrorRecord, Started, Stop, write_record
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
        ([line(100), line(100), line(100, 79)], Exit.NO_PROGRESS),
    ],
)
def test_three_failures_without_a_new_checkpoint_are_no_progress(
    earlier: list[dict[str, Any]], code: Exit
) -> None:
    assert decide(left(error=error()), earlier=earlier).exit_code == code


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
        attempt=2, checkpoint_step=200, started=True, stop=stop("user"), ended=SAVED
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
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
