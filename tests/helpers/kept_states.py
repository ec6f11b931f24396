"""Ranks that keep states in memory, as the loop makes them; every node has a folder of its own."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from tests.helpers.ranks import RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.peer.part import decode
from trainer.checkpoint.peer.tier import Peers
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
    engine: Any,  # only what checkpoints need of one
    *,
    first: int,
    last: int,
    waits: int = 1_000_000,
) -> list[int | None]:
    """Steps as the loop makes them; the newest step in memory after each. `waits`: that many steps
    take as long as the processes beside them, the others 50 ms.
    """
    seen = []
    for step in range(first, last + 1):
        until = time.monotonic() + (15.0 if step - first < waits else 0.05)
        while store.said() == (0.0, 0.0) and time.monotonic() < until:
            time.sleep(0.002)
        told = world.sum(list(store.said()))
        engine.fill(step)
        store.keep(
            world,
            engine,
            step=step,
            told=(told[0], told[1]),
            training=partial(_training, world, step),
        )
        assert store._memory is not None
        assert store._memory.saves is not None
        seen.append(store._memory.saves.step)
    return seen


def _training(world: World, step: int) -> dict[str, int]:
    return {"step": step, "mine": world.place.rank}


def run_attempt(
    world: World,
    folder: Path,
    per_node: int,
    attempt: int,
    steps: int,
    options: dict[str, Any],
) -> dict[str, Any]:
    """One attempt: load, check what was loaded, train so many steps, say what happened."""
    cut, disk, drill = options.get("cut", "zero1"), options.get("disk", 0), options.get("drill", "")
    every, waits = options.get("every", 1), options.get("waits", 1_000_000)
    if drill:
        os.environ[ENVIRONMENT] = drill
    engine: Any = SliceEngine(cut, world.place.rank, world.place.world_size)
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
    store.prepare(world, engine)
    seen = train(world, store, engine, first=at + 1, last=at + steps, waits=waits)
    until = time.monotonic() + 300
    while seen and waits > steps and store.said() == (0.0, 0.0) and time.monotonic() < until:
        time.sleep(0.002)  # the last one is whole too
    world.sum([0.0])
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


def attempt(
    ranks: RankPool,
    world_size: int,
    folder: Path,
    per_node: int,
    number: int,
    steps: int,
    **how: Any,
) -> list[dict[str, Any]]:
    return ranks.run(world_size, run_attempt, folder, per_node, number, steps, how)


def lose(folder: Path, node: int) -> None:
    """The machine is gone, and with it all that lay in its memory."""
    shutil.rmtree(folder / f"host-{node}")


def flip(path: Path, *, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def newest_files(folder: Path, rank: int) -> list[Path]:
    """Own and replica of the rank's newest part, by hosts."""
    found: dict[int, list[Path]] = {}
    for part in folder.glob(f"host-*/*/{RUN}/node-*/*/*/rank-{rank:05d}.part"):
        step = decode(part.read_bytes()).step
        found.setdefault(step, []).append(part.with_suffix(".safetensors"))
    return sorted(found[max(found)], key=lambda p: "/own/" not in str(p))
