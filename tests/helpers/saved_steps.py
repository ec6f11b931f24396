"""Steps saved to a disk in memory by any world in any layout, and loaded again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.helpers.crash_disk import Disk, DiskStorage, File
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import World

ROOT = Path("/run/checkpoints")


def store(disk: Disk, **settings: Any) -> CheckpointStore:
    return CheckpointStore(ROOT, storage=DiskStorage(disk), chunk_bytes=256, **settings)


def save(world: World, disk: Disk, *steps: int, cut: str = "zero1", **settings: Any) -> None:
    checkpoints = store(disk, **settings)
    for step in steps:
        ours: Any = SliceEngine(cut, world.place.rank, world.place.world_size).fill(step)
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
        ours: Any = SliceEngine(cut, world.place.rank, world.place.world_size)
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
