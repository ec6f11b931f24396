"""Background saves by real ranks over gloo: a rank that dies takes its writer along."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.agent_process import wait_for
from tests.helpers.ranks import RankFailure, RankPool
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone, World
from trainer.faultpoints import ENVIRONMENT
from trainer.storage.local import LocalStorage


def save_some(world: World, folder: Path) -> list[tuple[int, bool]]:
    """Ten steps, a save at each third, the last one waited for."""
    ours = SliceEngine("zero1", world.place.rank, world.place.world_size)
    saves = CheckpointStore(folder, asynchronous=True, keep_last=9)
    saves.prepare(world, ours)
    reports = []
    for step in range(1, 11):
        ours.fill(step)
        if world.sum([float(saves.written())])[0] == world.place.world_size:
            reports += saves.finish(world)
        if step % 3 == 0:
            reports += saves.begin(world, ours, step=step, training={"step": step})
    reports += saves.drain(world)
    reports += [saves.save(world, ours, step=10, training={"step": 10})]
    saves.close()
    return [(r.step, r.succeeded) for r in reports]


def die_while_saving(world: World, folder: Path, rank: int) -> None:
    """The writers sleep before their fsync; meanwhile a rank is killed."""
    os.environ[ENVIRONMENT] = "point=save.file_written,action=sleep,value=300,step=2"
    ours = SliceEngine("zero1", world.place.rank, world.place.world_size).fill(1)
    saves = CheckpointStore(folder, asynchronous=True, drills=True)
    saves.save(world, ours, step=1, training={"step": 1})
    saves.begin(world, ours.fill(2), step=2, training={"step": 2})
    time.sleep(0.2)
    if world.place.rank == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    saves.drain(world)


def test_saves_go_on_while_the_ranks_do(ranks: RankPool, tmp_path: Path) -> None:
    said = ranks.run(3, save_some, tmp_path)
    assert said == [[(3, True), (6, True), (9, True), (10, True)]] * 3
    assert not any(verify_step(LocalStorage(), tmp_path, step).problems for step in (3, 6, 9, 10))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_rank_takes_its_writer_along_and_leaves_the_step_before(
    ranks: RankPool, tmp_path: Path, rank: int
) -> None:
    with pytest.raises(RankFailure, match=f"rank {rank} of 2 died without a word"):
        ranks.run(2, die_while_saving, tmp_path, rank)
    wait_for(lambda: not writers(tmp_path))  # no writer outlives its rank
    ours = SliceEngine("plain", 0, 1)
    assert CheckpointStore(tmp_path, attempt=2).load_latest(Alone(), ours) == {"step": 1}
    assert not ours.differs(1)


def writers(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"trainer.checkpoint.writer_process" in words and str(folder).encode() in words:
            found.append(entry.name)
    return found
