"""States in the memory of nodes, kept and loaded by real ranks; each node has its own folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankFailure, RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.peer import Peers
from trainer.checkpoint.peer_part import decode, encode
from trainer.checkpoint.peer_wire import RemoteFile
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import World
from trainer.faultpoints import ENVIRONMENT
from trainer.records.lineage import write_loaded
from trainer.records.memory_files import MemoryFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal

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
    waits: int = 1_000_000,
) -> list[int | None]:
    """Steps as the loop makes them; the newest step in memory after each. `waits`: that many steps
    take as long as the processes beside them, the others 50 ms.
    """
    seen = []
    for step in range(first, last + 1):
        until = time.monotonic() + (5.0 if step - first < waits else 0.05)
        while store.said() == (0.0, 0.0) and time.monotonic() < until:
            time.sleep(0.002)
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
    options: dict[str, Any],
) -> dict[str, Any]:
    """One attempt: load, check what was loaded, train so many steps, say what happened."""
    cut, disk, drill = options.get("cut", "zero1"), options.get("disk", 0), options.get("drill", "")
    every, waits = options.get("every", 1), options.get("waits", 1_000_000)
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
    store.prepare(world, engine)
    seen = train(world, store, engine, first=at + 1, last=at + steps, waits=waits)
    until = time.monotonic() + 5.0
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


@pytest.mark.parametrize(("world_size", "per_node"), [(1, 1), (2, 2), (2, 1), (3, 1)])
def test_a_lost_process_goes_on_from_memory(
    ranks: RankPool, tmp_path: Path, world_size: int, per_node: int
) -> None:
    first = attempt(ranks, world_size, tmp_path, per_node, 1, 8)
    assert [one["loaded"] for one in first] == [0] * world_size
    newest = first[0]["seen"][-1]
    assert newest >= 6
    second = attempt(ranks, world_size, tmp_path, per_node, 2, 6)
    for one in second:
        assert one["loaded"] >= newest
        assert not one["wrong"]
        assert one["mine"] == 0
        assert "memory of node" in one["where"]
        assert one["seen"][-1] > one["loaded"]
    third = attempt(ranks, world_size, tmp_path, per_node, 3, 1)
    assert third[0]["loaded"] >= second[0]["seen"][-1]
    assert not third[0]["wrong"]


# --- what memory survives -------------------------------------------------------------------------


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


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_a_lost_node_goes_on_from_its_neighbours_copy(
    ranks: RankPool, tmp_path: Path, gone: int
) -> None:
    first = attempt(ranks, 3, tmp_path, 1, 1, 6)
    newest = first[0]["seen"][-1]
    lose(tmp_path, gone)
    for one in attempt(ranks, 3, tmp_path, 1, 2, 4):
        assert one["loaded"] >= newest
        assert not one["wrong"]
        assert one["where"].endswith("(1 of 3 files from a neighbour's copy)")
        assert one["seen"][-1] > one["loaded"]


def test_two_ranks_a_node_and_another_world_and_cut(ranks: RankPool, tmp_path: Path) -> None:
    """Four ranks on two nodes, then two nodes of one rank each, then one rank."""
    first = attempt(RankPool(tmp_path / "pool", most=4), 4, tmp_path, 2, 1, 5)
    lose(tmp_path, 1)
    second = attempt(ranks, 2, tmp_path, 1, 2, 5, cut="zero3")
    assert second[0]["loaded"] >= first[0]["seen"][-1]
    assert second[0]["where"] == "memory of node 0 (2 of 4 files from a neighbour's copy)"
    third = attempt(ranks, 1, tmp_path, 1, 3, 3, cut="plain")
    assert third[0]["loaded"] >= second[0]["seen"][-1]
    assert not [one["wrong"] for one in (*second, *third) if one["wrong"]]


@pytest.mark.parametrize("offset", [20, -5])
def test_a_damaged_file_is_read_from_its_other_copy(
    ranks: RankPool, tmp_path: Path, offset: int
) -> None:
    first = attempt(ranks, 2, tmp_path, 1, 1, 6)
    own, replica = newest_files(tmp_path, 1)
    assert "/own/" in str(own)
    assert "/of-node-1/" in str(replica)
    flip(own, offset=offset % own.stat().st_size)
    second = attempt(ranks, 2, tmp_path, 1, 2, 5)
    for one in second:
        assert one["loaded"] >= first[0]["seen"][-1]
        assert not one["wrong"]
        assert "1 of 2 files from a neighbour's copy" in one["where"]


def test_a_state_of_which_no_copy_is_whole_never_beats_the_disk(
    ranks: RankPool, tmp_path: Path
) -> None:
    """Both copies of one rank's newest file are damaged: the disk's step, though it is older."""
    attempt(ranks, 2, tmp_path, 1, 1, 6, disk=2)
    for generation in tmp_path.glob(f"host-*/*/{RUN}/node-*/*/*/rank-00001.safetensors"):
        flip(generation, offset=generation.stat().st_size - 5)
    second = attempt(ranks, 2, tmp_path, 1, 2, 5)
    assert [one["loaded"] for one in second] == [2, 2]
    assert not second[0]["wrong"]
    assert second[0]["where"] == ""
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()
    third = attempt(ranks, 2, tmp_path, 1, 3, 2)  # what attempt 1 kept counts no more
    assert third[0]["loaded"] == second[0]["seen"][-1]


def test_a_disk_that_is_as_new_is_taken(ranks: RankPool, tmp_path: Path) -> None:
    first = attempt(ranks, 2, tmp_path, 2, 1, 6, disk=7)
    assert first[0]["seen"][-1] >= 4
    second = attempt(ranks, 2, tmp_path, 2, 2, 2)
    assert [(one["loaded"], one["where"]) for one in second] == [(7, "")] * 2


def test_a_damaged_step_on_the_disk_falls_back_to_memory_that_is_newer_than_the_next(
    ranks: RankPool, tmp_path: Path
) -> None:
    first = attempt(ranks, 2, tmp_path, 2, 1, 6, disk=9)
    (damaged,) = (tmp_path / "run" / "checkpoints").glob("step-*/rank-00001.safetensors")
    flip(damaged, offset=damaged.stat().st_size - 3)
    second = attempt(ranks, 2, tmp_path, 2, 2, 2)
    assert second[0]["loaded"] >= first[0]["seen"][-1]
    assert second[0]["where"] == "memory of node 0"
    assert (tmp_path / "run" / "checkpoints" / "quarantine").is_dir()


# --- states that count no more --------------------------------------------------------------------


def test_another_runs_states_and_those_it_turned_its_back_on_are_not_read(
    ranks: RankPool, tmp_path: Path
) -> None:
    attempt(ranks, 1, tmp_path, 1, 1, 6)
    parts = (tmp_path / "host-0").glob(f"*/{RUN}/node-*/*/*/*.part")
    older, newest = sorted(decode(part.read_bytes()).step for part in parts)
    kept = tmp_path / "kept"
    shutil.copytree(tmp_path / "host-0", kept)
    lineage = tmp_path / "run" / "lineage.jsonl"
    withdrawn = tmp_path / "run" / "withdrawn.json"

    write_loaded(lineage, attempt=2, step=older - 1, checkpoints=tmp_path)
    assert attempt(ranks, 1, tmp_path, 1, 3, 0)[0]["loaded"] == 0

    def as_before() -> None:
        shutil.rmtree(tmp_path / "host-0")
        shutil.copytree(kept, tmp_path / "host-0")
        lineage.unlink()

    as_before()
    add_withdrawal(withdrawn, Withdrawal(attempt=1, time=time.time(), after=older))
    assert attempt(ranks, 1, tmp_path, 1, 2, 0)[0]["loaded"] == older
    as_before()
    withdrawn.unlink()
    assert attempt(ranks, 1, tmp_path, 1, 2, 0)[0]["loaded"] == newest
    as_before()
    for path in (tmp_path / "host-0").glob(f"*/{RUN}/node-*/*/*/*.part"):
        part = replace(decode(path.read_bytes()), run_hash="another")
        path.write_bytes(encode(part))
    assert attempt(ranks, 1, tmp_path, 1, 2, 0)[0]["loaded"] == 0


def go_back(world: World, folder: Path) -> list[int]:
    """Eight steps, a checkpoint at the third, then back to it; the steps that still count here."""
    engine = SliceEngine("zero1", world.place.rank, world.place.world_size)
    store = open_store(world, folder, per_node=1)
    store.prepare(world, engine)
    train(world, store, engine, first=1, last=3)
    store.save(world, engine, step=3, training={"step": 3})
    train(world, store, engine, first=4, last=8)
    store.set_aside(world, after=3, why="it went wrong")
    left = sorted(
        decode(part.read_bytes()).step for part in memory_of(folder, world.place.rank).parts()
    )
    seen = train(world, store, engine, first=4, last=6)
    store.close()
    assert seen[-1] in (4, 5)
    return left


def test_a_run_that_goes_back_forgets_what_came_after(ranks: RankPool, tmp_path: Path) -> None:
    for left in ranks.run(2, go_back, tmp_path):
        assert all(step <= 3 for step in left)


# --- what goes wrong while states are kept --------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "action"),
    [
        ("memory.summed", "kill"),
        ("memory.before_part", "kill"),
        ("memory.kept", "kill"),
        ("memory.sent", "kill"),
        ("memory.before_part", "enospc"),
        ("memory.kept", "raise"),
    ],
)
def test_a_state_that_fails_is_dropped_and_the_one_before_stands(
    ranks: RankPool, tmp_path: Path, point: str, action: str
) -> None:
    """The process of rank 1 dies, or fails, at its third state; training goes on all the same."""
    drill = f"point={point},action={action},rank=1,hit=3,token={tmp_path / 'token'}"
    first = attempt(ranks, 2, tmp_path, 1, 1, 10, drill=drill)
    assert (tmp_path / "token.1").exists()
    assert "; 1 failed" in first[0]["note"]
    seen = first[0]["seen"]
    assert seen == sorted(seen, key=lambda s: -1 if s is None else s)
    assert seen[-1] >= 8  # they were kept again after it
    second = attempt(ranks, 2, tmp_path, 1, 2, 1)
    assert second[0]["loaded"] >= seen[-1]
    assert not second[0]["wrong"] + second[1]["wrong"]


def die(world: World, folder: Path, rank: int, drill: str) -> None:
    """A rank is killed while its process is at the given place of the third state."""
    if world.place.rank == rank:
        os.environ[ENVIRONMENT] = drill
    engine = SliceEngine("zero1", world.place.rank, world.place.world_size)
    store = open_store(world, folder, per_node=1, drills=True)
    store.prepare(world, engine)
    train(world, store, engine, first=1, last=3)
    if world.place.rank == rank:
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGKILL)
    train(world, store, engine, first=4, last=9)


@pytest.mark.parametrize("point", ["memory.summed", "memory.before_part", "memory.kept"])
def test_a_rank_that_dies_in_the_middle_of_a_state_leaves_the_one_before(
    ranks: RankPool, tmp_path: Path, point: str
) -> None:
    drill = f"point={point},action=sleep,value=30,step=3"
    with pytest.raises(RankFailure, match="rank 1 of 2 died without a word"):
        ranks.run(2, die, tmp_path, 1, drill, timeout_s=60)
    second = attempt(ranks, 2, tmp_path, 1, 2, 1)
    assert [one["loaded"] for one in second] == [3 if point == "memory.kept" else 2] * 2
    assert not second[0]["wrong"] + second[1]["wrong"]


def test_a_neighbour_that_cannot_be_reached_holds_nobody_up(
    ranks: RankPool, tmp_path: Path
) -> None:
    """Its process is stopped: due states are dropped and counted, training waits for nothing."""
    drill = "point=memory.summed,action=stop,rank=1,hit=2"
    first = attempt(ranks, 2, tmp_path, 1, 1, 15, drill=drill, waits=3)
    assert first[0]["seconds"] < 12 * 0.05 + 10  # it waits for nothing, but for the first steps
    assert int(re.search(r"; (\d+) dropped", first[0]["note"])[1]) >= 4
    second = attempt(ranks, 2, tmp_path, 1, 2, 1)
    assert second[0]["loaded"] >= first[0]["seen"][-1] > 0
    assert not second[0]["wrong"] + second[1]["wrong"]


@pytest.mark.skipif(os.getuid() != 0, reason="a file system of a given size needs root")
def test_memory_that_is_full_is_said_once_and_training_goes_on(
    ranks: RankPool, tmp_path: Path
) -> None:
    small = tmp_path / "host-0"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40k", "none", small], check=True)
    try:
        first = attempt(ranks, 2, tmp_path, 1, 1, 5, waits=1)
    finally:
        subprocess.run(["umount", "-l", small], check=True)
    assert [one["note"] for one in first] == ["", ""]
    (log,) = sorted(Path(ranks._folder).glob("world-*/rank-0.log"))[-1:]
    said = log.read_text()
    assert "nothing is kept in memory in this attempt: rank 0: " in said
    assert "has 40.0 KiB free, rank 0 needs " in said or "KiB free, rank 0 needs" in said
    assert "checkpoint.peer.every=0" in said


def knock(world: World, folder: Path) -> list[str]:
    """What a stranger gets who finds the port, without the token and with it."""
    engine = SliceEngine("zero1", world.place.rank, world.place.world_size)
    store = open_store(world, folder, per_node=1)
    store.prepare(world, engine)
    train(world, store, engine, first=1, last=4)
    assert store._memory is not None
    here = store._memory._here
    assert here is not None
    heard = []
    path = f"node-{1 - world.place.rank}/own/0001.0/rank-0000{1 - world.place.rank}.safetensors"
    for token, name in [
        ("0" * 64, path),
        (here.token, "../../../../etc/passwd"),
        (here.token, f"{path}/../../../../lock"),
        (here.token, path),
    ]:
        try:
            file = RemoteFile(here.addresses[1 - world.place.rank], token, name)
            heard.append(f"{file.size}")
            file.close()
        except OSError as e:
            heard.append(f"{type(e).__name__}")
    world.sum([0.0])
    store.close()
    return heard


def test_who_has_no_token_gets_nothing_and_with_it_only_states(
    ranks: RankPool, tmp_path: Path
) -> None:
    for strange, outside, upwards, mine in ranks.run(2, knock, tmp_path):
        assert strange in ("ConnectionError", "ConnectionResetError", "BrokenPipeError")
        assert outside == upwards == "FileNotFoundError"
        assert int(mine) > 4096
