"""Saves that go on while training does: what is stored. Real writer processes, ranks as threads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.background import Drill, begin, ended, engine, loaded, store, train
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.format import Identity
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.checkpoint.writer import ChunkChecksums, write_rank_file
from trainer.dist.world import Alone
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment
from trainer.reports import SaveReport
from trainer.storage.local import LocalStorage


def test_what_is_stored_is_the_state_at_the_boundary_fifty_times(tmp_path: Path) -> None:
    world, ours = Alone(), SliceEngine("plain", 0, 1)
    saves = store(tmp_path / "a", keep_last=99)
    waited = CheckpointStore(tmp_path / "s", keep_last=99)
    for step in range(1, 51):
        waited.save(world, ours.fill(step), step=step, training={"step": step})
        training = {"step": step, "cursor": {"next": step}}
        saves.begin(world, ours, step=step, training=training)
        ours.fill(1000 + step)  # training goes on at once
        training["step"] = training["cursor"]["next"] = -1  # type: ignore[index]
        if step % 2:  # two at a time as well
            assert train(world, saves)[0].succeeded
    assert all(report.succeeded for report in saves.drain(world))
    saves.close()
    assert saves.steps() == list(range(1, 51))
    for step in saves.steps():
        name = f"step-{step:08d}/rank-00000.safetensors"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    assert loaded(tmp_path / "a") == 50


def test_all_ranks_report_alike_and_any_world_loads(tmp_path: Path) -> None:
    def be_rank(world: ThreadWorld) -> list[SaveReport]:
        saves = store(tmp_path)
        assert begin(world, saves, engine(world), 1) == []
        reports = train(world, saves)
        saves.close()
        return reports

    reports = [r for (r,) in ended(run_threads(3, be_rank))]
    assert {(r.step, r.succeeded, r.bytes, r.path, r.problem) for r in reports} == {
        (1, True, reports[0].bytes, str(tmp_path / "step-00000001"), "")
    }
    assert not verify_step(LocalStorage(), tmp_path, 1).problems
    assert loaded(tmp_path) == 1


def test_a_save_that_must_be_durable_waits_for_the_writers(tmp_path: Path) -> None:
    saves = store(tmp_path)
    begin(Alone(), saves, engine(Alone()), 1)
    assert [r.step for r in saves.drain(Alone())] == [1]
    report = saves.save(Alone(), engine(Alone(), 2), step=2, training={"step": 2})
    assert report.succeeded
    assert report.stall_s >= report.write_s > 0
    assert loaded(tmp_path) == 2
    saves.close()


def test_loading_waits_for_the_save_under_way(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=0.3")
    saves, ours = store(tmp_path, drills=True), engine(Alone())
    begin(Alone(), saves, ours, 1)
    ours.fill(7)
    assert saves.load_latest(Alone(), ours) == {"step": 1}
    assert not ours.differs(1)
    assert [r.step for r in saves.drain(Alone())] == [1]  # nobody had heard of it yet
    saves.close()


def test_an_engine_that_holds_more_than_before_finds_room(tmp_path: Path) -> None:
    """Optimizers may make their moments in the first step."""
    small, ours = SliceEngine("plain", 0, 1, kinds=("master",)), engine(Alone())
    saves = store(tmp_path)
    saves.prepare(Alone(), small)
    begin(Alone(), saves, ours, 1)
    assert train(Alone(), saves)[0].succeeded
    assert loaded(tmp_path) == 1
    saves.close()


def test_a_bit_that_flips_between_copy_and_write_is_a_failed_save(tmp_path: Path) -> None:
    staged = np.arange(1000, dtype=np.float32)
    sums = ChunkChecksums(256)
    sums.add(staged.view(np.uint8))
    staged.view(np.uint8)[1500] ^= 4
    fragment = Fragment("a", "master", (1000,), 0, 1000)
    with pytest.raises(CheckpointError, match="chunk 5 of 16 is not what was copied"):
        write_rank_file(
            LocalStorage(),
            tmp_path,
            Identity(1, 0, 1),
            [fragment],
            iter([staged.view(np.uint8)]),
            chunk_bytes=256,
            expected=sums.all(),
        )


def test_checksums_of_the_source_are_those_of_the_file(tmp_path: Path) -> None:
    saves = store(tmp_path, checksum_source=True)
    for step in (1, 2):
        begin(Alone(), saves, engine(Alone()), step)
        assert train(Alone(), saves)[0].succeeded
    saves.close()
    assert loaded(tmp_path) == 2
