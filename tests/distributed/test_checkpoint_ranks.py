"""Checkpoints by real processes: agreement over gloo, and a rank that dies while saving."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankFailure, RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import World
from trainer.storage.local import LocalStorage, NewFile


class StumblingStorage(LocalStorage):
    """A real disk that is full, or a process that dies, when this rank's file is begun."""

    def __init__(self, act: str) -> None:
        self._act = act

    def create(self, path: Path, *, size: int) -> NewFile:
        if path.name.startswith("rank-"):
            if self._act == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().create(path, size=size)


def save(world: World, folder: Path, cut: str, step: int) -> bool:
    ours = SliceEngine(cut, world.place.rank, world.place.world_size).fill(step)
    report = CheckpointStore(folder).save(world, ours, step=step, training={"step": step})
    return report.succeeded


def save_stumbling(world: World, folder: Path, rank: int, act: str) -> tuple[bool, str]:
    ours = SliceEngine("zero1", world.place.rank, world.place.world_size).fill(9)
    storage = StumblingStorage(act) if world.place.rank == rank else LocalStorage()
    checkpoints = CheckpointStore(folder, storage=storage)
    report = checkpoints.save(world, ours, step=9, training={"step": 9})
    return report.succeeded, report.problem


def load(world: World, folder: Path, cut: str) -> Any:
    ours = SliceEngine(cut, world.place.rank, world.place.world_size)
    found = CheckpointStore(folder, attempt=2).load_latest(world, ours)
    assert found is not None
    return found["step"], ours.differs(found["step"])


def test_two_ranks_save_three_load_and_one_loads(ranks: RankPool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert ranks.run(2, save, folder, "zero1", 1) == [True, True]
    assert ranks.run(3, load, folder, "zero3") == [(1, [])] * 3
    assert ranks.run(3, save, folder, "zero3", 2) == [True] * 3
    assert ranks.run(1, load, folder, "plain") == [(2, [])]
    assert not verify_step(LocalStorage(), folder, 2).problems


def test_damage_on_one_rank_is_a_verdict_on_all(ranks: RankPool, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (1, 2):
        ranks.run(2, save, folder, "zero3", step)
    path = folder / "step-00000002/rank-00001.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert ranks.run(2, load, folder, "zero3") == [(1, [])] * 2
    assert (folder / "quarantine/step-00000002.1/why.txt").is_file()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_on_one_rank_is_a_failed_save_on_all(
    ranks: RankPool, tmp_path: Path, rank: int
) -> None:
    folder = tmp_path / "checkpoints"
    ranks.run(2, save, folder, "zero1", 1)
    said = ranks.run(2, save_stumbling, folder, rank, "full")
    problem = f"step 9 was not saved: rank {rank}: the disk of {folder} is full (No space left"
    assert said[0] == said[1]
    assert not said[0][0]
    assert said[0][1].startswith(problem)
    assert sorted(p.name for p in folder.iterdir()) == ["latest.json", "step-00000001"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_while_saving_leaves_the_previous_checkpoint(
    ranks: RankPool, tmp_path: Path, rank: int
) -> None:
    folder = tmp_path / "checkpoints"
    ranks.run(2, save, folder, "zero1", 1)
    with pytest.raises(RankFailure, match=f"rank {rank} of 2 died without a word"):
        ranks.run(2, save_stumbling, folder, rank, "die")
    assert ranks.run(3, load, folder, "zero3") == [(1, [])] * 3
    assert (folder / "step-00000009.incoming-0001").is_dir()
    assert ranks.run(2, save, folder, "zero1", 9) == [True, True]  # the leftover is in nobody's way
    assert not (folder / "step-00000009.incoming-0001").exists()
