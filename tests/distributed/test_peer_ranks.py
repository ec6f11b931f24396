"""States in the memory of nodes, loaded by real ranks: what they survive, what counts no more."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.kept_states import (
    RUN,
    attempt,
    flip,
    lose,
    memory_of,
    newest_files,
    open_store,
    train,
)
from tests.helpers.ranks import RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.peer.part import decode, encode
from trainer.dist.world import World
from trainer.records.lineage import write_loaded
from trainer.records.withdrawn import Withdrawal, add_withdrawal


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


@pytest.mark.parametrize(
    ("suffix", "offset"), [(".safetensors", 20), (".safetensors", -5), (".part", 40)]
)
def test_a_damaged_file_is_read_from_its_other_copy(
    ranks: RankPool, tmp_path: Path, suffix: str, offset: int
) -> None:
    first = attempt(ranks, 2, tmp_path, 1, 1, 6)
    own, replica = newest_files(tmp_path, 1)
    assert "/own/" in str(own)
    assert "/of-node-1/" in str(replica)
    damaged = own.with_suffix(suffix)
    flip(damaged, offset=offset % damaged.stat().st_size)
    second = attempt(ranks, 2, tmp_path, 1, 2, 3)
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
    assert second[0]["seen"][-1] <= third[0]["loaded"] <= 2 + 5


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
