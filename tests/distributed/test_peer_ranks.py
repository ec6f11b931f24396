"""States in the memory of nodes, kept and loaded by real ranks; each node has its own folder."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.peer import Peers
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import World
from trainer.faultpoints import ENVIRONMENT
from trainer.records.lineage import write_loaded
from trainer.records.memory_files import MemoryFiles

RUN = "run-1"


def memory_of(folder: Path, node: int) -> MemoryFiles:
    """As if every node had a /dev/shm of its own."""
    return MemoryFiles(folder / f"host-{node}", RUN)


def open_store(
    world: World, folder: Path, *, per_node: int, attempt: int = 1, every: Any = 1, **settings: Any
) -> CheckpointStore:
    files = memory_of(folder, world.place.rank // per_node)
    files.folder.mkdir(exist_ok=True, parents=True)
    return CheckpointStore(
        folder / "run" / "checkpoints",
        attempt=attempt,
        run_hash=RUN,
        peers=Peers(every=every, files=files, ranks_per_node=per_node),
        **settings,
    )


def train(
    world: World,
    store: CheckpointStore,
    engine: SliceEngine,
    *,
    first: int,
    last: int,
    patience_s: float,
) -> list[int | None]:
    """Steps as the loop makes them; the newest step in memory after each."""
    store.prepare(world, engine)
    seen = []
    for step in range(first, last + 1):
        until = time.monotonic() + patience_s
        while store.said() == (0.0, 0.0) and time.monotonic() < until:
            time.sleep(0.002)  # as long as a step may take
        told = world.sum(list(store.said()))
        engine.fill(step)
        store.keep(
            world,
            engine,
            step=step,
            told=(told[0], told[1]),
            training=lambda step=step: {"step": step, "mine": world.place.rank},
        )
        assert store._memory is not None
        assert store._memory.saves is not None
        seen.append(store._memory.saves.step)
    return seen


def run_attempt(
    world: World,
    folder: Path,
    per_node: int,
    attempt: int,
    steps: int,
    cut: str = "zero1",
    disk: int = 0,
    drill: str = "",
    every: Any = 1,
    patience_s: float = 5.0,
) -> dict[str, Any]:
    """One attempt: load, check what was loaded, train so many steps, say what happened."""
    if drill:
        os.environ[ENVIRONMENT] = drill
    engine = SliceEngine(cut, world.place.rank, world.place.world_size)
    store = open_store(
        world, folder, per_node=per_node, attempt=attempt, drills=bool(drill), every=every
    )
    found = store.load_latest(world, engine)
    at = int(found["step"]) if found else 0
    wrong = engine.differs(at) if found else []
    if world.place.rank == 0:
        lineage = folder / "run" / "lineage.jsonl"
        lineage.parent.mkdir(exist_ok=True, parents=True)
        write_loaded(lineage, attempt=attempt, step=at, checkpoints=folder / "none")
    began = time.monotonic()
    seen = train(world, store, engine, first=at + 1, last=at + steps, patience_s=patience_s)
    if disk:
        store.save(world, engine.fill(disk), step=disk, training={"step": disk})
    said = {
        "loaded": at,
        "wrong": wrong,
        "mine": found["mine"] if found and "mine" in found else None,
        "where": store.loaded_from.where if store.loaded_from else "",
        "seen": seen,
        "note": store.memory_note,
        "seconds": time.monotonic() - began,
    }
    store.close()
    return said


@pytest.mark.parametrize(("world_size", "per_node"), [(1, 1), (2, 2), (2, 1), (3, 1)])
def test_a_lost_process_goes_on_from_memory(
    ranks: RankPool, tmp_path: Path, world_size: int, per_node: int
) -> None:
    first = ranks.run(world_size, run_attempt, tmp_path, per_node, 1, 8)
    assert [one["loaded"] for one in first] == [0] * world_size
    newest = first[0]["seen"][-1]
    assert newest >= 6
    second = ranks.run(world_size, run_attempt, tmp_path, per_node, 2, 6)
    for one in second:
        assert one["loaded"] >= newest
        assert not one["wrong"]
        assert one["mine"] == 0
        assert "memory of node" in one["where"]
        assert one["seen"][-1] > one["loaded"]
    third = ranks.run(world_size, run_attempt, tmp_path, per_node, 3, 1)
    assert third[0]["loaded"] >= second[0]["seen"][-1]
    assert not third[0]["wrong"]
