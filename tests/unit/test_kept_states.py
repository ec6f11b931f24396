"""States in memory as the launcher sees them: progress, going back without them, giving back."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from launch.outcome import Observed, Outcome, decide
from launch.run.budgets import RestartRules
from launch.run.housekeeping import remove, rubbish
from launch.run.kept_states import give_back_if_over, goes_on
from launch.run.next_attempt import next_attempt
from launch.run.run_folder import own
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord, Started, write_record
from trainer.records.json_file import write_json
from trainer.records.memory_files import MemoryFiles, abandoned, give_back, hold, is_held
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import read_withdrawals

AGAIN = RestartRules(enabled=True, max_idle=3)
KILLED = ErrorRecord(time=5.0, rank=1, host="a", kind="Killed", message="killed", exit_code=76)


def life(*begins: int, disk: int = 100, has_older: bool = True) -> list[Outcome]:
    """Attempts that die, each having gone on from a step of `begins`; one step on the disk."""
    lines: list[dict[str, Any]] = []
    outcomes = []
    for number, begin in enumerate(begins, 1):
        seen = Observed(
            attempt=number,
            checkpoint_step=disk,
            has_older=has_older,
            started=True,
            from_step=begin,
            error=KILLED,
        )
        outcomes.append(decide(seen, earlier=lines, rules=AGAIN))
        line = {"attempt": number, "checkpoint_step": disk, "from_step": begin, "action": "again"}
        lines.append(line | {"exit_code": 76, "cause": "crash", "step_back": False})
        lines[-1]["step_back"] = outcomes[-1].step_back
    return outcomes


def test_a_run_that_goes_on_from_memory_makes_progress_without_a_checkpoint() -> None:
    assert [one.action for one in life(0, 150, 200, 250, 300, 350)] == ["again"] * 6
    assert not any(one.step_back for one in life(0, 150, 200, 250, 300, 350))


def test_a_state_in_memory_that_nothing_goes_on_from_is_left_once() -> None:
    outcomes = life(100, 150, 150, 150, has_older=False)
    assert [one.step_back for one in outcomes] == [False, False, False, True]
    assert life(0, 150, 150, 150, disk=0, has_older=False)[-1].exit_code == Exit.NO_PROGRESS


def a_run(folder: Path, *, every: Any = 1) -> RunFiles:
    run = RunFiles(folder / "run")
    files = run.attempt(1)
    (files.root / "submission").mkdir(parents=True)
    (files.root / "submission" / "ranks.json").write_text("{}")
    peer = {"every": every, "folder": str(folder / "shm")}
    config = {"checkpoint": {"peer": peer}}
    write_json(files.plan, {"run_id": "r1", "world_size": 2, "config": config})
    for step in (50, 100):
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
        (run.checkpoints / f"step-{step:08d}" / "manifest.json").touch()
    own(run, 1)
    return run


def again(**given: Any) -> Outcome:
    return Outcome("again", Exit.FAILED, "killed", **{"cause": "crash", **given})


@pytest.mark.parametrize(
    ("began", "outcome", "after", "parked"),
    [
        (120, again(step_back=True), 100, False),
        (100, again(step_back=True), 99, True),
        (120, again(cause="hardware"), 100, False),
        (120, again(), None, False),
    ],
)
def test_going_back_leaves_what_is_in_memory_before_a_checkpoint(
    tmp_path: Path, began: int, outcome: Outcome, after: int | None, parked: bool
) -> None:
    run = a_run(tmp_path)
    write_record(run.attempt(1).started, Started(time=1.0, step=began, world_size=2, host="a"))
    next_attempt(run, run.attempt(1), outcome)
    withdrawn = read_withdrawals(run.withdrawn)
    assert [one.after for one in withdrawn] == ([] if after is None else [after])
    assert (run.checkpoints / "quarantine").exists() == parked
    if after is not None:
        assert withdrawn[0].covers(120, attempt=1, created=time.time() - 1)


def test_where_an_attempt_goes_on_is_said_as_far_as_it_is_known(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    said = goes_on(run, run.attempt(1))
    assert said == "from step 100, or from a later step that is still in memory"
    other = a_run(tmp_path / "b", every=0)
    assert goes_on(other, other.attempt(1)) == "from step 100"


def test_an_attempt_that_was_replaced_leaves_the_memory_to_the_one_that_has_the_run(
    tmp_path: Path,
) -> None:
    run = a_run(tmp_path)
    (tmp_path / "shm").mkdir()
    memory = MemoryFiles(tmp_path / "shm", "r1")
    memory.enter(0)
    memory.own(0, "0002.0").mkdir(parents=True)
    own(run, 2)
    give_back_if_over(run.attempt(1), Outcome("give_up", Exit.STOP, "replaced"), node=0)
    assert memory.own(0, "0002.0").is_dir()


@pytest.mark.parametrize(
    ("outcome", "stays"),
    [
        (Outcome("done", Exit.DONE, ""), False),
        (Outcome("give_up", Exit.STOP, "", "config"), False),
        (Outcome("give_up", Exit.FAILED, "", "user"), False),
        (Outcome("again", Exit.SAVED, "", "preempt"), False),  # the disk has the same step
        (Outcome("again", Exit.FAILED, "", "crash"), True),
        (Outcome("again", Exit.FAILED, "", "preempt"), True),
    ],
)
def test_memory_is_given_back_when_no_attempt_may_want_it(
    tmp_path: Path, outcome: Outcome, stays: bool
) -> None:
    run = a_run(tmp_path)
    (tmp_path / "shm").mkdir()
    memory = MemoryFiles(tmp_path / "shm", "r1")
    for node in (0, 1):
        memory.enter(node)
        memory.own(node, "0001.0").mkdir(parents=True)
    give_back_if_over(run.attempt(1), outcome, node=0)
    assert memory.node(0).exists() == stays
    give_back_if_over(run.attempt(1), outcome, node=1)
    assert memory.base.exists() == stays


def test_gc_knows_of_memory_that_nobody_holds(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record = {"format": 1, "run_id": "r1", "name": "run", "created": 1.0, "frozen_hash": ""}
    write_json(run.run_json, record | {"config": {}, "versions": {}})
    (tmp_path / "shm").mkdir()
    memory = MemoryFiles(tmp_path / "shm", "r1")
    lock = hold(memory, 0)
    memory.own(0, "0001.0").mkdir(parents=True)
    (memory.own(0, "0001.0") / "rank-00000.safetensors").write_bytes(b"x" * 8192)

    def listed() -> list[Any]:
        return [one for one in rubbish([run], keep=None, failed=False) if one.path == memory.root]

    assert listed() == []
    os.close(lock)
    (one,) = listed()
    assert one.why == "states in memory; a resume goes on from the disk then"
    assert one.size >= 8192
    remove(one, run)
    assert not memory.root.exists()


def test_a_run_whose_only_state_lies_in_memory_is_not_called_failed(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    record = {"format": 1, "run_id": "r1", "name": "run", "created": 1.0, "frozen_hash": ""}
    write_json(run.run_json, record | {"config": {}, "versions": {}})
    shutil.rmtree(run.checkpoints)
    run.checkpoints.mkdir()
    memory = MemoryFiles(tmp_path / "shm", "r1")
    memory.own(0, "0001.0").mkdir(parents=True)

    def listed() -> dict[Path, str]:
        return {one.path: one.why for one in rubbish([run], keep=None, failed=True)}

    assert listed() == {run.root: "failed, and has no checkpoint"}  # room alone is no state
    (memory.own(0, "0001.0") / "rank-00000.part").write_text("{}")
    anew = "states in memory; a resume begins anew: there is nothing else then"
    assert listed() == {memory.root: anew}


def test_what_a_killed_agent_left_goes_with_the_next_run_but_not_too_soon(tmp_path: Path) -> None:
    mine, other = MemoryFiles(tmp_path, "mine"), MemoryFiles(tmp_path, "other")
    lock = hold(mine, 0)
    held = hold(other, 0)
    assert is_held(other.root)
    assert list(abandoned(mine, older_s=-1)) == []  # somebody lives who keeps states there
    os.close(held)
    assert not is_held(other.root)
    assert list(abandoned(mine)) == []  # a restart may be on its way
    assert list(abandoned(mine, older_s=-1)) == [other.root]
    give_back(other)
    assert mine.root.exists()
    os.close(lock)


def test_a_folder_that_others_can_open_is_not_used(tmp_path: Path) -> None:
    files = MemoryFiles(tmp_path, "r1")
    files.base.mkdir(mode=0o755)
    files.base.chmod(0o755)
    with pytest.raises(PermissionError, match="is open to other users"):
        files.enter(0)
    files.base.rmdir()
    files.base.symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="is not a folder of this user"):
        files.enter(0)


def test_an_id_cannot_name_another_folder() -> None:
    with pytest.raises(ValueError, match="cannot be a run's id"):
        MemoryFiles(Path("/dev/shm"), "../x")


def test_a_lock_is_shared_by_the_ranks_of_a_node(tmp_path: Path) -> None:
    files = MemoryFiles(tmp_path, "r1")
    one, two = hold(files, 0), hold(files, 0)
    os.close(one)
    assert is_held(files.root)
    os.close(two)
    assert not is_held(files.root)
