"""Damaged and malicious checkpoints, a few of each kind, and that the drill can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.store import CheckpointStore
from trainer.records.run_files import RunFiles
from trainer.verify.damages import Bed, damage_files, point_anywhere
from trainer.verify.malice import attack


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    folder = RunFiles(tmp_path / "run").checkpoints

    def save(world: ThreadWorld) -> list[bool]:
        store, place = CheckpointStore(folder, chunk_bytes=64), world.place
        engine = SliceEngine("zero3", place.rank, place.world_size)
        return [
            store.save(world, engine.fill(step), step=step, training={"step": step}).succeeded
            for step in (5, 10)
        ]

    assert run_threads(2, save) == [[True, True]] * 2
    return Bed(tmp_path / "run", tmp_path / "scratch")


class _Believer(Bed):
    """Loads whatever lies there, as if nothing were ever damaged."""

    def loaded(self) -> tuple[int, str]:
        return self.newest, self.digests[self.newest]


def test_no_malicious_checkpoint_runs_code_hangs_takes_memory_or_is_loaded(
    bed: Bed, tmp_path: Path
) -> None:
    score = attack(bed, tmp_path / "canary")
    assert score.silent == []
    assert score.noticed == score.tried
    assert score.tried.total() >= 25
    assert not (tmp_path / "canary").exists()


def test_every_pointer_leads_to_the_newest_whole_step(bed: Bed) -> None:
    score = point_anywhere(bed)
    assert score.silent == []
    assert score.tried.total() == 12


def test_who_believes_everything_is_found_out(bed: Bed, tmp_path: Path) -> None:
    del bed  # it has made the run
    believer = _Believer(tmp_path / "run", tmp_path / "scratch")
    score = damage_files(believer, count=20, seed=1)
    assert score.noticed.keys() <= {"extra"}  # the one that verify alone must report
    assert all("step 10 was loaded, not 5" in text for text in score.silent)
