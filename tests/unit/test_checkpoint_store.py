"""Saved by any world in any layout, loaded by any other, bit for bit; what is kept and refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.crash_disk import Disk, DiskStorage
from tests.helpers.saved_steps import ROOT, files, load, save, saved, store
from tests.helpers.slice_engine import ADAM, LAYOUTS, SHAPES, SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.ranges import open_step
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.errors import CheckpointError, CheckpointMismatch, WorldError
from trainer.reports import SaveReport
from trainer.storage.local import LocalStorage

# --- any world, any layout ---------------------------------------------------------------------


@cache
def saved_once(*, world_size: int, cut: str) -> Disk:
    """Steps 1 and 2; loading whole steps changes nothing on a disk."""
    return saved(1, 2, world_size=world_size, cut=cut)


@pytest.mark.parametrize("cut_after", LAYOUTS)
@pytest.mark.parametrize("cut_before", LAYOUTS)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2), (2, 2)])
def test_any_world_and_layout_loads_what_any_other_saved(
    before: int, after: int, cut_before: str, cut_after: str
) -> None:
    disk = saved_once(world_size=before, cut=cut_before)
    assert load(disk, world_size=after, cut=cut_after) == [2] * after


def test_more_ranks_than_elements_save_and_load() -> None:
    disk = saved(1, world_size=5, cut="zero3")
    assert load(disk, world_size=4, cut="zero1") == [1] * 4


def test_a_run_without_checkpoints_has_nothing_to_load() -> None:
    disk = Disk()
    assert store(disk).load_latest(Alone(), SliceEngine("plain", 0, 1)) is None


def test_a_rank_opens_only_the_files_that_hold_its_share() -> None:
    for cut in ("zero3", "zero1"):
        disk = saved(1, world_size=8, cut=cut)
        ours = SliceEngine(cut, 3, 8)
        storage = DiskStorage(disk)
        stored = open_step(storage, ROOT)
        for held in ours.held:
            stored.read(held.fragment, held.values.numpy().view("uint8"))
        ranks = [path.name for path in storage.opened if path.name.startswith("rank-")]
        assert ranks == ["rank-00003.safetensors"]


def test_loading_reads_every_byte_about_once() -> None:
    disk = saved(1, world_size=3)
    storage = DiskStorage(disk)
    checkpoints = CheckpointStore(ROOT, storage=storage)
    checkpoints.load_latest(Alone(), SliceEngine("plain", 0, 1))
    stored = sum(len(file.data) for file in files(disk, 1).values())
    assert stored <= storage.bytes_read <= 1.02 * stored


def test_values_that_change_between_saves_are_the_ones_saved() -> None:
    """The plan of a save is kept for the next one; the values must not be."""
    disk = saved()
    checkpoints, ours = store(disk, keep_last=3), SliceEngine("plain", 0, 1)
    for step in (1, 2, 3):
        training = {"step": step, "cursor": {"next": step * 8}}
        assert checkpoints.save(Alone(), ours.fill(step), step=step, training=training).succeeded
    assert load(disk) == [3]


# --- another model, another run ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("shapes", "kinds", "says"),
    [
        ((*SHAPES, ("extra", (2,))), ADAM, "it has no tensor 'extra', which the model trains"),
        (SHAPES[:-1], ADAM, "1 tensors that the model does not train, 'head.bias' for one"),
        ((*SHAPES[:-1], ("head.bias", (2,))), ADAM, r"'head.bias' has shape \[1\].* is \[2\]"),
        (SHAPES, ("master", "momentum_buffer"), "has no 'momentum_buffer', only exp_avg, exp_avg"),
    ],
)
def test_another_model_or_optimizer_is_refused_by_name_and_nothing_is_condemned(
    shapes: Any, kinds: Any, says: str
) -> None:
    disk = saved(1, 2)

    def be_rank(world: ThreadWorld) -> None:
        place = world.place
        ours = SliceEngine("zero1", place.rank, place.world_size, shapes=shapes, kinds=kinds)
        with pytest.raises(CheckpointMismatch, match=says) as told:
            store(disk).load_latest(world, ours)
        assert told.value.exit_code == 78

    assert run_threads(2, be_rank) == [None, None]
    assert load(disk) == [2]


def test_a_checkpoint_of_another_run_is_refused() -> None:
    disk = saved(1, run_hash="a" * 64)
    with pytest.raises(CheckpointMismatch, match="belongs to another run"):
        load(disk, run_hash="b" * 64)
    assert load(disk, run_hash="a" * 64) == [1]


def test_fewer_kinds_than_are_stored_can_be_asked_for() -> None:
    """Evaluation needs the weights alone."""
    disk = saved(1, world_size=2)
    ours = SliceEngine("plain", 0, 1, kinds=("master",))
    store(disk).load(Alone(), ours, step=1)
    assert not ours.differs(1)


# --- the life of a step ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "kept"),
    [(1, 0, [6]), (2, 0, [5, 6]), (1, 2, [2, 4, 6]), (2, 3, [3, 5, 6]), (9, 0, [1, 2, 3, 4, 5, 6])],
)
def test_retention_keeps_the_newest_and_the_multiples(
    keep_last: int, keep_every: int, kept: list[int]
) -> None:
    disk = saved(*range(1, 7), keep_last=keep_last, keep_every=keep_every)
    assert store(disk).steps() == kept


def test_saving_a_whole_step_again_writes_nothing() -> None:
    disk = saved(1, 2, world_size=2)
    storage = DiskStorage(disk)

    def again(world: ThreadWorld) -> bool:
        ours = SliceEngine("zero3", world.place.rank, world.place.world_size).fill(99)
        return (
            CheckpointStore(ROOT, storage=storage).save(world, ours, step=2, training={}).succeeded
        )

    assert run_threads(2, again) == [True, True]
    assert not storage.operations
    assert load(disk) == [2]


def test_leftovers_of_dead_attempts_are_removed_and_those_of_later_ones_are_not() -> None:
    disk = saved(1, attempt=3)
    for attempt in (1, 3, 4):
        DiskStorage(disk).make_folder(ROOT / f"step-00000007.incoming-{attempt:04d}")
    save(Alone(), disk, 2, attempt=3)
    left = [name for name in DiskStorage(disk).list(ROOT) if "incoming" in name]
    assert left == ["step-00000007.incoming-0004"]


def test_a_report_says_what_was_stored_and_how_long_training_stood_still(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path / "checkpoints", origin={"engine": "zero2"})
    report = checkpoints.save(Alone(), SliceEngine("plain", 0, 1).fill(1), step=1, training={})
    folder = tmp_path / "checkpoints/step-00000001"
    assert report.path == str(folder)
    assert report.bytes == (folder / "rank-00000.safetensors").stat().st_size
    assert 0 < report.stall_s < 30
    assert open_step(LocalStorage(), folder.parent).manifest.origin["engine"] == "zero2"


def test_only_the_owner_may_look_into_checkpoints(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(tmp_path / "checkpoints")
    checkpoints.save(Alone(), SliceEngine("plain", 0, 1).fill(1), step=1, training={})
    for path in (tmp_path / "checkpoints").rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_training_state_that_is_no_json_is_a_failed_save() -> None:
    disk = saved()
    report = store(disk).save(
        Alone(), SliceEngine("plain", 0, 1), step=1, training={"last_loss": float("nan")}
    )
    assert not report.succeeded
    assert "not JSON compliant" in report.problem


def test_ranks_that_see_different_folders_are_told_so() -> None:
    mine, other = saved(1, world_size=2), saved(1, world_size=2, attempt=2)

    def be_rank(world: ThreadWorld) -> str:
        ours = SliceEngine("zero3", world.place.rank, world.place.world_size)
        try:
            store(mine if world.place.rank == 0 else other).load_latest(world, ours)
        except (CheckpointError, WorldError) as e:
            return str(e)
        return ""

    for said in run_threads(2, be_rank):
        assert "is the folder shared by all?" in str(said)


def test_reports_are_equal_on_all_ranks() -> None:
    disk = saved()

    def be_rank(world: ThreadWorld) -> SaveReport:
        ours = SliceEngine("zero1", world.place.rank, world.place.world_size)
        return store(disk).save(world, ours, step=1, training={})

    reports = [r for r in run_threads(3, be_rank) if isinstance(r, SaveReport)]
    assert len({(r.step, r.succeeded, r.bytes, r.path, r.problem) for r in reports}) == 1
