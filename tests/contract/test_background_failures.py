"""A background save that fails: every rank hears of it, the old step stays, the next one works."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.background import Drill, begin, ended, engine, loaded, store, train
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.errors import Superseded, TooManyFailedSaves
from trainer.records.owner import Owner, write_owner
from trainer.reports import SaveReport

POINTS = [
    ("save.file_written", 0, "rank 0"),
    ("save.file_written", 1, "rank 1"),
    ("save.file_durable", 0, "rank 0"),
    ("save.file_durable", 1, "rank 1"),
    ("save.before_manifest", 0, "rank 0, publishing"),
    ("save.before_rename", 0, "rank 0, publishing"),
]


@pytest.mark.parametrize(("point", "rank", "who"), POINTS)
def test_a_writer_killed_anywhere_is_a_failed_save_on_all_and_the_next_one_works(
    tmp_path: Path, drill: Drill, point: str, rank: int, who: str
) -> None:
    drill(f"point={point},action=kill,rank={rank},step=2,token=@")

    def be_rank(world: ThreadWorld) -> list[tuple[bool, str]]:
        saves, ours = store(tmp_path, drills=True), engine(world)
        said = []
        for step in (1, 2, 3):
            begin(world, saves, ours, step)
            said += [(r.succeeded, r.problem) for r in train(world, saves)]
        saves.close()
        return said

    first, second = ended(run_threads(2, be_rank))
    assert first == second
    problem = f"step 2 was not saved: {who}: the writer process was killed by signal 9"
    assert first == [(True, ""), (False, problem), (True, "")]
    assert sorted(p.name for p in tmp_path.glob("step-*")) == ["step-00000001", "step-00000003"]
    assert loaded(tmp_path) == 3


def test_a_writer_killed_after_publication_leaves_a_whole_step(
    tmp_path: Path, drill: Drill
) -> None:
    """Nobody was told that it was saved, which is the safe way to be wrong."""
    drill("point=save.before_pointer,action=kill,step=2,token=@")
    saves, ours = store(tmp_path, drills=True), engine(Alone())
    reports = []
    for step in (1, 2):
        begin(Alone(), saves, ours, step)
        reports += train(Alone(), saves)
    saves.close()
    assert [r.succeeded for r in reports] == [True, False]
    assert loaded(tmp_path) == 2


@pytest.mark.parametrize("rank", [0, 2])
def test_a_full_disk_on_one_rank_is_a_failed_save_on_all(
    tmp_path: Path, drill: Drill, rank: int
) -> None:
    drill(f"point=save.file_written,action=enospc,rank={rank},step=2")

    def be_rank(world: ThreadWorld) -> list[str]:
        saves, ours = store(tmp_path, drills=True), engine(world)
        said = []
        for step in (1, 2):
            begin(world, saves, ours, step)
            said += [r.problem for r in train(world, saves)]
        saves.close()
        return said

    problem = f"step 2 was not saved: rank {rank}: the disk of {tmp_path} is full (No space left"
    for said in ended(run_threads(3, be_rank)):
        assert said[0] == ""
        assert said[1].startswith(problem)
    assert loaded(tmp_path) == 1
    assert not list(tmp_path.glob("*incoming*"))  # its room was given back


def test_failed_saves_in_a_row_stop_the_run(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=eio,times=0")
    saves, ours = store(tmp_path, drills=True, max_failed_saves=2), engine(Alone())
    begin(Alone(), saves, ours, 1)
    assert not train(Alone(), saves)[0].succeeded
    begin(Alone(), saves, ours, 2)
    with pytest.raises(TooManyFailedSaves, match="2 saves in a row failed"):
        train(Alone(), saves)
    saves.close()


def test_a_state_that_cannot_be_copied_is_a_failed_save_on_all(tmp_path: Path) -> None:
    def be_rank(world: ThreadWorld) -> list[SaveReport]:
        saves, ours = store(tmp_path), engine(world)
        if world.place.rank == 1:
            del ours.held[0]
        reports = begin(world, saves, ours, 1)
        nan = {"last_loss": float("nan")}
        reports += saves.begin(world, engine(world, 2), step=2, training=nan)
        saves.close()
        return reports

    for first, second in ended(run_threads(2, be_rank)):
        assert "the ranks together hold" in first.problem
        assert "not JSON compliant" in second.problem


def test_a_run_that_was_taken_over_meanwhile_is_not_published_to(
    tmp_path: Path, drill: Drill
) -> None:
    """The rank sleeps through its own replacement; its writer asks at the last moment."""
    drill("point=save.before_rename,action=sleep,value=8,step=2")
    folder = tmp_path / "checkpoints"
    write_owner(tmp_path / "owner", Owner(1))

    def be_rank(world: ThreadWorld) -> str:
        saves, ours = store(folder, drills=True), engine(world)
        begin(world, saves, ours, 1)
        train(world, saves)
        begin(world, saves, ours, 2)
        world.sum([0.0])
        world.lead(lambda: write_owner(tmp_path / "owner", Owner(2)))
        try:
            train(world, saves)
        except Superseded as e:
            return str(e)
        finally:
            saves.close()
        return ""

    for said in ended(run_threads(2, be_rank)):
        assert "attempt 1 may no longer write to this run: attempt 2 has taken it over" in said
    assert CheckpointStore(folder, attempt=2).steps() == [1]
