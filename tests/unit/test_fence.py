"""An attempt whose run was taken over publishes nothing, at whatever moment it happens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.run.run_folder import new_attempt, own, owner
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.errors import Superseded
from trainer.records.owner import Owner, read_owner, refuse_if_superseded, write_owner
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage


class Interrupted(LocalStorage):
    """Does something right before a step becomes real: after its owner was read."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def rename(self, source: Path, target: Path) -> None:
        if ".incoming" in source.name:
            self._then()
        super().rename(source, target)


def store(run: RunFiles, attempt: int, **settings: Any) -> CheckpointStore:
    return CheckpointStore(run.checkpoints, attempt=attempt, chunk_bytes=256, **settings)


def save(checkpoints: CheckpointStore, step: int) -> Any:
    engine: Any = SliceEngine("zero1", 0, 1).fill(step)
    return checkpoints.save(Alone(), engine, step=step, training={"step": step})


def test_a_run_that_was_taken_over_gets_no_step_of_the_old_attempt(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    assert new_attempt(run).number == 1
    old = store(run, 1)
    assert save(old, 10).succeeded
    assert new_attempt(run).number == 2
    with pytest.raises(Superseded, match=r"attempt 1 may no longer write .*: attempt 2 \(process"):
        save(old, 20)
    assert store(run, 2).steps() == [10]
    with pytest.raises(Superseded):
        store(run, 1)  # nor does it begin
    assert save(store(run, 2), 20).succeeded


def test_a_second_agent_of_the_same_attempt_is_another_owner(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    new_attempt(run)
    old = store(run, 1)
    write_owner(run.owner, Owner(1, "another-host", 17, 4, "b"))
    with pytest.raises(Superseded, match=r"attempt 1 .process 17 on another-host. has"):
        save(old, 10)


def test_a_takeover_between_the_look_and_the_rename_leaves_nothing(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    new_attempt(run)
    old = store(run, 1, storage=Interrupted(lambda: own(run, 2)))
    assert not save(old, 10).succeeded
    assert old.steps() == []
    assert save(store(run, 2), 10).succeeded  # what is left of it is in nobody's way
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["latest.json", "step-00000010"]


def test_an_owner_that_cannot_be_read_lets_nobody_write(tmp_path: Path) -> None:
    run = RunFiles(tmp_path)
    assert refuse_if_superseded(run.owner, 3) is None  # a folder of no launcher
    run.owner.write_text("{")
    with pytest.raises(Superseded, match="owner is damaged"):
        refuse_if_superseded(run.owner, 3)
    assert owner(run) is None
    run.owner.write_text("3\n")  # as it was written before it named a process
    assert read_owner(run.owner) == Owner(3)
