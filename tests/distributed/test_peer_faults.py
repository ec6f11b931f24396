"""What goes wrong while states are kept in memory: the one before stands, training goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.kept_states import (
    attempt,
    memory_of,
    open_store,
    train,
)
from tests.helpers.ranks import RankFailure, RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.peer.wire import RemoteFile
from trainer.dist.world import World
from trainer.faultpoints import ENVIRONMENT


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


ASLEEP = "asleep"


def die(world: World, folder: Path, rank: int, drill: str) -> None:
    """A rank is killed while its process is at the given place of the third state."""
    if world.place.rank == rank:
        os.environ[ENVIRONMENT] = drill
    engine = SliceEngine("zero1", world.place.rank, world.place.world_size)
    store = open_store(world, folder, per_node=1, drills=True)
    store.prepare(world, engine)
    train(world, store, engine, first=1, last=3)
    asleep = Path(f"{folder / ASLEEP}.{rank}")
    wait_for(asleep.exists if world.place.rank == rank else lambda: store.said() != (0.0, 0.0))
    world.sum([0.0])
    if world.place.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    train(world, store, engine, first=4, last=9)


@pytest.mark.parametrize("point", ["memory.summed", "memory.before_part", "memory.kept"])
def test_a_rank_that_dies_in_the_middle_of_a_state_leaves_the_one_before(
    ranks: RankPool, tmp_path: Path, point: str
) -> None:
    drill = f"point={point},action=sleep,value=500,step=3,token={tmp_path / ASLEEP}"
    with pytest.raises(RankFailure, match="rank 1 of 2 died without a word"):
        ranks.run(2, die, tmp_path, 1, drill)
    second = attempt(ranks, 2, tmp_path, 1, 2, 1)
    assert [one["loaded"] for one in second] == [3 if point == "memory.kept" else 2] * 2
    assert not second[0]["wrong"] + second[1]["wrong"]


def test_a_neighbour_that_cannot_be_reached_holds_nobody_up(
    ranks: RankPool, tmp_path: Path
) -> None:
    """Its process is stopped: due states are dropped and counted, training waits for nothing."""
    drill = "point=memory.summed,action=stop,rank=1,hit=2"
    first = attempt(ranks, 2, tmp_path, 1, 1, 15, drill=drill, waits=3)
    assert first[0]["seconds"] < 12 * 0.05 + 200  # it waits for nothing, but for the first steps
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


def nowhere(world: World, folder: Path) -> list[int | None]:
    engine = SliceEngine("zero1", world.place.rank, world.place.world_size)
    store = open_store(world, folder, per_node=1)
    shutil.rmtree(memory_of(folder, world.place.rank).folder)
    store.prepare(world, engine)
    seen = train(world, store, engine, first=1, last=3, waits=1)
    store.close()
    return seen


def test_a_folder_that_is_not_there_is_said_once_and_training_goes_on(
    ranks: RankPool, tmp_path: Path
) -> None:
    assert ranks.run(1, nowhere, tmp_path) == [[None] * 3]
    log = sorted(Path(ranks._folder).glob("world-*/rank-0.log"))[-1].read_text()
    assert log.count("nothing is kept in memory in this attempt: rank 0: ") == 1
    assert "host-0 cannot be used for states (No such file or directory: " in log
