"""Damage is found wherever it is, never loaded, and kept for a person; the step before is taken."""

from __future__ import annotations

import errno
import logging
import random
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.crash_disk import Disk, DiskStorage, File
from tests.helpers.saved_steps import ROOT, files, load, save, saved, store
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import run_threads
from trainer.checkpoint.ranges import open_step
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone
from trainer.errors import CheckpointError, CheckpointMismatch, RunFolderError
from trainer.records.manifest import RankFile, encode

# --- fallback ----------------------------------------------------------------------------------


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
        assert "never" not in str(told.value)  # resume=never is refused where a run is
        assert f"bring back a whole one as {ROOT}/step-..." in str(told.value)
        assert f"another run.name, or under this one once {ROOT.parent} has been" in str(told.value)


def test_a_step_that_is_mended_and_brought_back_from_quarantine_is_loaded() -> None:
    disk = saved(1)
    content = files(disk, 1)["rank-00000.safetensors"].data
    content[-1] ^= 1
    with pytest.raises(RunFolderError):
        load(disk)
    content[-1] ^= 1
    storage = DiskStorage(disk)
    storage.rename(ROOT / "quarantine/step-00000001.1", ROOT / "step-00000001")
    assert load(disk) == [1]  # its why.txt is in nobody's way


def test_a_damaged_step_is_kept_for_a_person() -> None:
    disk = saved(1, 2)
    before = bytes(files(disk, 2)["rank-00000.safetensors"].data)
    files(disk, 2)["rank-00000.safetensors"].data[-1] ^= 1
    load(disk)
    kept = disk.file(ROOT / "quarantine/step-00000002.1/rank-00000.safetensors")
    assert bytes(kept.data[:-1]) == before[:-1]


def test_the_pointer_is_a_hint_that_nobody_follows() -> None:
    contents = (
        *(b"", b"garbage", b"\xff\x00", b"null", b"[2]", b'{"step": "1"}', b'{"step": -1}'),
        *(b'{"step": 1}', b'{"step": 99}', b'{"step": 3, "sha256": "half of it"}', b"9" * 10_000),
    )
    for content in contents:
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
    assert "step 1 was loaded instead" in caplog.text


def test_loading_a_named_step_moves_nothing() -> None:
    disk = saved(1, 2)
    files(disk, 2)["rank-00000.safetensors"].data[-1] ^= 1
    ours = SliceEngine("plain", 0, 1)
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        store(disk).load(Alone(), ours, step=2)
    assert store(disk).load(Alone(), ours, step=1)["step"] == 1
    assert store(disk).steps() == [1, 2]


def test_saving_a_damaged_step_again_moves_it_away_and_writes_it_anew() -> None:
    disk = saved(1, 2, world_size=2)
    files(disk, 2)["rank-00001.safetensors"].data[-1] ^= 1
    for ended in run_threads(3, lambda world: save(world, disk, 2)):
        assert ended is None, ended
    assert load(disk) == [2]
    assert DiskStorage(disk).list(ROOT / "quarantine") == ["step-00000002.1"]


# --- verification ------------------------------------------------------------------------------


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
