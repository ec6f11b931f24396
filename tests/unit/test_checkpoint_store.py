"""Saved by any world in any layout, loaded by any other, bit for bit; damage is never loaded."""

from __future__ import annotations

import errno
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.crash_disk import Disk, DiskStorage, File
from tests.helpers.slice_engine import ADAM, LAYOUTS, SHAPES, SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.ranges import open_step
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone, World
from trainer.errors import CheckpointError, CheckpointMismatch, RunFolderError, WorldError
from trainer.records.manifest import RankFile, encode
from trainer.reports import SaveReport
from trainer.storage.local import LocalStorage

ROOT = Path("/run/checkpoints")


def store(disk: Disk, **settings: Any) -> CheckpointStore:
    return CheckpointStore(ROOT, storage=DiskStorage(disk), chunk_bytes=256, **settings)


def save(world: World, disk: Disk, *steps: int, cut: str = "zero1", **settings: Any) -> None:
    checkpoints = store(disk, **settings)
    for step in steps:
        ours = SliceEngine(cut, world.place.rank, world.place.world_size).fill(step)
        training = {"step": step, "cursor": {"next": step * 8}}
        report = checkpoints.save(world, ours, step=step, training=training)
        assert report.succeeded, report.problem


def saved(*steps: int, world_size: int = 1, cut: str = "zero1", **settings: Any) -> Disk:
    disk = Disk()
    DiskStorage(disk).make_folder(ROOT.parent)
    for ended in run_threads(world_size, lambda w: save(w, disk, *steps, cut=cut, **settings)):
        assert ended is None, ended
    return disk


def load(disk: Disk, *, world_size: int = 1, cut: str = "zero3", **settings: Any) -> list[int]:
    """The step each rank went on from; what it holds was compared."""

    def be_rank(world: ThreadWorld) -> int:
        ours = SliceEngine(cut, world.place.rank, world.place.world_size)
        found = store(disk, **settings).load_latest(world, ours)
        assert found is not None
        assert found["cursor"] == {"next": found["step"] * 8}
        assert ours.step == found["step"]
        assert not ours.differs(found["step"])
        return int(found["step"])

    ended = run_threads(world_size, be_rank)
    for one in ended:
        if isinstance(one, Exception):
            raise one
    return [one for one in ended if isinstance(one, int)]


def files(disk: Disk, step: int) -> dict[str, File]:
    folder = disk.folder(ROOT / f"step-{step:08d}")
    return {name: node for name, node in folder.names.items() if isinstance(node, File)}


# --- any world, any layout -------------------------------------------------------------------


@pytest.mark.parametrize("cut_after", LAYOUTS)
@pytest.mark.parametrize("cut_before", LAYOUTS)
@pytest.mark.parametrize(("before", "after"), [(1, 3), (2, 1), (3, 2), (2, 2)])
def test_any_world_and_layout_loads_what_any_other_saved(
    before: int, after: int, cut_before: str, cut_after: str
) -> None:
    disk = saved(1, 2, world_size=before, cut=cut_before)
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


# --- damage ----------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_refused_and_the_step_before_is_loaded() -> None:
    disk, rng = saved(1, 2, world_size=2), random.Random(7)
    whole = {name: bytes(file.data) for name, file in files(disk, 2).items()}
    for _ in range(300):
        name = rng.choice(sorted(whole))
        at = rng.randrange(len(whole[name]))
        copy = saved_copy(disk)
        files(copy, 2)[name].data[at] ^= 1 << rng.randrange(8)
        assert load(copy) == [1], (name, at)
        assert DiskStorage(copy).list(ROOT / "quarantine") == ["step-00000002.1"]


def saved_copy(disk: Disk) -> Disk:
    """The same files on a disk of their own."""
    *_, everything = disk.after_power_loss()  # the last state: all that was done
    return everything


@pytest.mark.parametrize(
    "name", ["manifest.json", "rank-00000.safetensors", "rank-00001.safetensors"]
)
@pytest.mark.parametrize(
    "damage", ["missing", "empty", "truncated", "longer", "zeroed", "other step"]
)
def test_a_broken_file_is_refused_and_the_step_before_is_loaded(name: str, damage: str) -> None:
    disk = saved(1, 2, world_size=2)
    folder, file = disk.folder(ROOT / "step-00000002"), files(disk, 2)[name]
    if damage == "missing":
        del folder.names[name]
    elif damage == "other step":
        file.data[:] = files(disk, 1)[name].data
    else:
        size = len(file.data)
        cut = {"empty": b"", "truncated": file.data[:-1], "longer": file.data + b"\0"}
        file.data[:] = cut.get(damage, bytes(size))
    assert load(disk, world_size=3) == [1] * 3
    why = disk.file(ROOT / "quarantine/step-00000002.1/why.txt")
    assert name in why.data.decode()


def test_two_ranks_files_exchanged_are_refused() -> None:
    disk = saved(1, 2, world_size=2, cut="zero3")
    first, second = (files(disk, 2)[f"rank-0000{rank}.safetensors"] for rank in (0, 1))
    first.data, second.data = second.data, first.data
    assert load(disk) == [1]


def test_damage_that_one_rank_meets_is_a_verdict_on_all() -> None:
    disk = saved(1, 2, 3, world_size=2, cut="zero3", keep_last=3)
    for step in (2, 3):
        files(disk, step)["rank-00001.safetensors"].data[-1] ^= 1
    assert load(disk, world_size=2, cut="zero3") == [1, 1]


def test_with_only_damaged_steps_no_run_starts_from_nothing() -> None:
    disk = saved(1, 2)
    for step in (1, 2):
        files(disk, step)["rank-00000.safetensors"].data[-1] ^= 1
    for _ in range(2):  # also the next attempt, which finds no step at all
        with pytest.raises(RunFolderError, match="every checkpoint is damaged") as told:
            load(disk)
        assert told.value.exit_code == 78
        assert "resume.mode=never" in str(told.value)


def test_a_damaged_step_is_kept_for_a_person() -> None:
    disk = saved(1, 2)
    before = bytes(files(disk, 2)["rank-00000.safetensors"].data)
    files(disk, 2)["rank-00000.safetensors"].data[-1] ^= 1
    load(disk)
    kept = disk.file(ROOT / "quarantine/step-00000002.1/rank-00000.safetensors")
    assert bytes(kept.data[:-1]) == before[:-1]


def test_the_pointer_is_a_hint_that_nobody_follows() -> None:
    for content in (b"", b"garbage", b'{"step": 1}', b'{"step": 99}'):
        disk = saved(1, 2)
        disk.file(ROOT / "latest.json").data[:] = content
        assert load(disk) == [2]
    disk = saved(1, 2)
    del disk.folder(ROOT).names["latest.json"]
    assert load(disk) == [2]


def test_a_storage_that_refuses_condemns_nothing() -> None:
    disk = saved(1, 2)

    class Refusing(DiskStorage):
        def open(self, path: Path) -> Any:
            if path.name.startswith("rank-"):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return super().open(path)

    checkpoints = CheckpointStore(ROOT, storage=Refusing(disk))
    with pytest.raises(CheckpointError, match=r"cannot read .*Permission denied"):
        checkpoints.load_latest(Alone(), SliceEngine("plain", 0, 1))
    assert not DiskStorage(disk).exists(ROOT / "quarantine")


def test_what_was_quarantined_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    disk = saved(1, 2)
    files(disk, 2)["rank-00000.safetensors"].data[-1] ^= 1
    with caplog.at_level(logging.WARNING):
        load(disk)
    assert "step 2 is damaged (rank 0: rank-00000.safetensors: chunk " in caplog.text


# --- another model, another run --------------------------------------------------------------


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


def test_loading_a_named_step_moves_nothing() -> None:
    disk = saved(1, 2)
    files(disk, 2)["rank-00000.safetensors"].data[-1] ^= 1
    ours = SliceEngine("plain", 0, 1)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        store(disk).load(Alone(), ours, step=2)
    assert store(disk).load(Alone(), ours, step=1)["step"] == 1
    assert store(disk).steps() == [1, 2]


# --- the life of a step ----------------------------------------------------------------------


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


def test_saving_a_damaged_step_again_moves_it_away_and_writes_it_anew() -> None:
    disk = saved(1, 2, world_size=2)
    files(disk, 2)["rank-00001.safetensors"].data[-1] ^= 1
    for ended in run_threads(3, lambda world: save(world, disk, 2)):
        assert ended is None, ended
    assert load(disk) == [2]
    assert DiskStorage(disk).list(ROOT / "quarantine") == ["step-00000002.1"]


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


# --- verification ----------------------------------------------------------------------------


def test_verify_finds_nothing_wrong_with_a_whole_step() -> None:
    disk = saved(1, world_size=3, cut="blocks")
    found = verify_step(DiskStorage(disk), ROOT, 1)
    assert not found.problems
    assert found.files == 3
    assert found.bytes == sum(len(f.data) for n, f in files(disk, 1).items() if n[0] == "r")


def test_verify_lists_all_that_is_wrong() -> None:
    disk = saved(1, world_size=3)
    files(disk, 1)["rank-00000.safetensors"].data[-1] ^= 1
    del disk.folder(ROOT / "step-00000001").names["rank-00002.safetensors"]
    disk.folder(ROOT / "step-00000001").names["stray"] = File()
    problems = verify_step(DiskStorage(disk), ROOT, 1).problems
    assert len(problems) == 3
    assert "rank-00000.safetensors: chunk" in problems[0]
    assert "rank-00002.safetensors: No such file" in problems[1]
    assert problems[2] == "stray: not in the manifest"


def test_a_manifest_that_promises_more_than_its_files_hold_is_refused() -> None:
    """Consistent checksums are not enough: somebody sealed a manifest over too few elements."""
    disk = saved(1, 2)
    manifest = open_step(DiskStorage(disk), ROOT, 2).manifest
    first = manifest.tensors[0]
    grown = type(first)(first.name, (first.shape[0] + 1, *first.shape[1:]), first.kinds)
    forged = type(manifest)(**{**vars(manifest), "tensors": (grown, *manifest.tensors[1:])})
    disk.file(ROOT / "step-00000002/manifest.json").data[:] = encode(forged)
    assert "wrong from element" in verify_step(DiskStorage(disk), ROOT, 2).problems[0]
    with pytest.raises(CheckpointMismatch, match="has shape"):
        load(disk)


def test_a_span_that_leaves_out_what_a_file_holds_is_told_as_a_gap() -> None:
    disk = saved(1, 2, world_size=2, cut="blocks")
    manifest = open_step(DiskStorage(disk), ROOT, 2).manifest
    blind = RankFile(*list(vars(manifest.files[0]).values())[:3], spans=((0, 1),))
    forged = type(manifest)(**{**vars(manifest), "files": (blind, manifest.files[1])})
    disk.file(ROOT / "step-00000002/manifest.json").data[:] = encode(forged)
    assert load(disk) == [1]


def test_reports_are_equal_on_all_ranks() -> None:
    disk = saved()

    def be_rank(world: ThreadWorld) -> SaveReport:
        ours = SliceEngine("zero1", world.place.rank, world.place.world_size)
        return store(disk).save(world, ours, step=1, training={})

    reports = [r for r in run_threads(3, be_rank) if isinstance(r, SaveReport)]
    assert len({(r.step, r.succeeded, r.bytes, r.path, r.problem) for r in reports}) == 1
