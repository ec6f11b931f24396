"""Background saves of a small engine: what begins one, what waits for it, what it left behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone, World
from trainer.reports import SaveReport

Drill = Callable[[str], None]  # tests/contract/conftest.py


def store(folder: Path, **settings: Any) -> CheckpointStore:
    return CheckpointStore(folder, asynchronous=True, **settings)


def engine(world: World, step: int = 0) -> Any:  # only what checkpoints need of an engine
    return SliceEngine("zero1", world.place.rank, world.place.world_size).fill(step)


def begin(world: World, saves: CheckpointStore, ours: Any, step: int) -> list[SaveReport]:
    return saves.begin(world, ours.fill(step), step=step, training={"step": step})


def train(world: World, saves: CheckpointStore, *, reports: int = 1) -> list[SaveReport]:
    """Steps as the loop makes them, a millisecond long, until so many saves have ended."""
    heard: list[SaveReport] = []
    until = time.monotonic() + 300
    while len(heard) < reports:
        assert time.monotonic() < until, "a save never ended"
        time.sleep(0.001)
        if world.sum([float(saves.written())])[0] == world.place.world_size:
            heard += saves.finish(world)
    return heard


def loaded(folder: Path) -> int:
    ours: Any = SliceEngine("zero3", 0, 1)
    found = CheckpointStore(folder, attempt=9).load_latest(Alone(), ours)
    assert found is not None
    assert not ours.differs(found["step"])
    return int(found["step"])


def writers(folder: Path) -> list[int]:
    """Pids of the writer processes of a checkpoints folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"trainer.checkpoint.writer_process" in words and str(folder).encode() in words:
                found.append(int(entry.name))
    return found


def ended(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results
