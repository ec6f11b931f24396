"""What a run leaves is its owner's alone, and what somebody planted there is not followed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.compute import compute
from launch.node.ranks_spec import RANKS_FILE
from launch.outcome import Outcome
from launch.run.next_attempt import next_attempt, park
from launch.run.run_folder import create, existing, new_attempt
from tests.helpers.configs import values
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone
from trainer.errors import Exit, LonghaulError
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage


@pytest.fixture(autouse=True)
def _generous_umask() -> Iterator[None]:
    before = os.umask(0)  # nothing may lean on the user's
    yield
    os.umask(before)


@pytest.fixture
def run(tmp_path: Path) -> RunFiles:
    return create(tmp_path / "runs", config=values("run.name=mine"), frozen_hash="x")


def _wide(folder: Path) -> list[str]:
    found = (p for p in (folder, *folder.rglob("*")) if not p.is_symlink())
    return [f"{p} {stat.S_IMODE(p.stat().st_mode):o}" for p in found if p.stat().st_mode & 0o077]


def test_a_run_its_attempts_and_its_checkpoints_are_its_owners(run: RunFiles) -> None:
    first = new_attempt(run)
    (first.root / RANKS_FILE).parent.mkdir(mode=0o700, parents=True)
    (first.root / RANKS_FILE).write_text("{}")
    (first.root / RANKS_FILE).chmod(0o600)
    store = CheckpointStore(run.checkpoints)
    assert store.save(Alone(), SliceEngine("plain", 0, 1).fill(1), step=1, training={}).succeeded
    next_attempt(run, first, Outcome("again", Exit.FAILED, "x"))
    park(run, 1, "a note")
    assert _wide(run.root) == []


def test_a_command_that_computes_writes_for_its_owner_alone(tmp_path: Path) -> None:
    (tmp_path / "made").mkdir(mode=0o700)
    assert compute("timeit", ["-n1", "-r1", f"open({str(tmp_path / 'made' / 'x')!r}, 'w')"]) == 0
    assert _wide(tmp_path / "made") == []


def test_a_link_in_the_runs_folder_is_not_a_free_place(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mine").symlink_to(elsewhere)
    if existing(tmp_path / "runs", "mine") is None:  # an empty folder is a free place
        with pytest.raises(LonghaulError):
            create(tmp_path / "runs", config=values("run.name=mine"), frozen_hash="x")
    assert not any(elsewhere.iterdir())


def test_a_link_in_the_place_of_a_step_or_a_file_is_damage(run: RunFiles, tmp_path: Path) -> None:
    store = CheckpointStore(run.checkpoints)
    engine = SliceEngine("plain", 0, 1)
    for step in (1, 2):
        assert store.save(Alone(), engine.fill(step), step=step, training={}).succeeded
    second = run.checkpoints / "step-00000002"
    second.rename(tmp_path / "planted")
    second.symlink_to(tmp_path / "planted")
    assert "link" in " ".join(verify_step(LocalStorage(), run.checkpoints, 2).problems)
    again = CheckpointStore(run.checkpoints)
    loaded = SliceEngine("plain", 0, 1)
    assert again.load_latest(Alone(), loaded) is not None
    assert loaded.differs(1) == [], "the step before it, which is none, is loaded"
