"""Saves that go on while training does: what is stored, who hears of failure, and that none hangs.

The writers are real processes; the ranks are threads, or one rank alone.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.format import Identity
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.checkpoint.writer import ChunkChecksums, write_rank_file
from trainer.dist.world import Alone, World
from trainer.errors import CheckpointError, Superseded, TooManyFailedSaves
from trainer.faultpoints import ENVIRONMENT
from trainer.records.fragment import Fragment
from trainer.records.owner import Owner, write_owner
from trainer.reports import SaveReport
from trainer.storage.local import LocalStorage

Drill = Callable[[str], None]


@pytest.fixture
def drill(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Drill:
    """Plan faults for writers that are started from here on; `@` is a token of their own."""

    def plan(text: str) -> None:
        monkeypatch.setenv(ENVIRONMENT, text.replace("@", str(tmp_path / "token")))

    return plan


def store(folder: Path, **settings: Any) -> CheckpointStore:
    return CheckpointStore(folder, asynchronous=True, **settings)


def engine(world: World, step: int = 0) -> SliceEngine:
    return SliceEngine("zero1", world.place.rank, world.place.world_size).fill(step)


def begin(world: World, saves: CheckpointStore, ours: SliceEngine, step: int) -> list[SaveReport]:
    return saves.begin(world, ours.fill(step), step=step, training={"step": step})


def train(world: World, saves: CheckpointStore, *, reports: int = 1) -> list[SaveReport]:
    """Steps as the loop makes them, a millisecond long, until so many saves have ended."""
    heard: list[SaveReport] = []
    until = time.monotonic() + 20
    while len(heard) < reports:
        assert time.monotonic() < until, "a save never ended"
        time.sleep(0.001)
        if world.sum([float(saves.written())])[0] == world.place.world_size:
            heard += saves.finish(world)
    return heard


def loaded(folder: Path) -> int:
    ours = SliceEngine("zero3", 0, 1)
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


# --- what is stored --------------------------------------------------------------------------


def test_what_is_stored_is_the_state_at_the_boundary_fifty_times(tmp_path: Path) -> None:
    world, ours = Alone(), SliceEngine("plain", 0, 1)
    saves = store(tmp_path / "a", keep_last=99)
    waited = CheckpointStore(tmp_path / "s", keep_last=99)
    for step in range(1, 51):
        waited.save(world, ours.fill(step), step=step, training={"step": step})
        training = {"step": step, "cursor": {"next": step}}
        saves.begin(world, ours, step=step, training=training)
        ours.fill(1000 + step)  # training goes on at once
        training["step"] = training["cursor"]["next"] = -1  # type: ignore[index]
        if step % 2:  # two at a time as well
            assert train(world, saves)[0].succeeded
    assert all(report.succeeded for report in saves.drain(world))
    saves.close()
    assert saves.steps() == list(range(1, 51))
    for step in saves.steps():
        name = f"step-{step:08d}/rank-00000.safetensors"
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()
    assert loaded(tmp_path / "a") == 50


def test_all_ranks_report_alike_and_any_world_loads(tmp_path: Path) -> None:
    def be_rank(world: ThreadWorld) -> list[SaveReport]:
        saves = store(tmp_path)
        assert begin(world, saves, engine(world), 1) == []
        reports = train(world, saves)
        saves.close()
        return reports

    reports = [r for (r,) in ended(run_threads(3, be_rank))]
    assert {(r.step, r.succeeded, r.bytes, r.path, r.problem) for r in reports} == {
        (1, True, reports[0].bytes, str(tmp_path / "step-00000001"), "")
    }
    assert not verify_step(LocalStorage(), tmp_path, 1).problems
    assert loaded(tmp_path) == 1


def test_a_save_that_must_be_durable_waits_for_the_writers(tmp_path: Path) -> None:
    saves = store(tmp_path)
    begin(Alone(), saves, engine(Alone()), 1)
    assert [r.step for r in saves.drain(Alone())] == [1]
    report = saves.save(Alone(), engine(Alone(), 2), step=2, training={"step": 2})
    assert report.succeeded
    assert report.stall_s >= report.write_s > 0
    assert loaded(tmp_path) == 2
    saves.close()


def test_loading_waits_for_the_save_under_way(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=0.3")
    saves, ours = store(tmp_path, drills=True), engine(Alone())
    begin(Alone(), saves, ours, 1)
    ours.fill(7)
    assert saves.load_latest(Alone(), ours) == {"step": 1}
    assert not ours.differs(1)
    assert [r.step for r in saves.drain(Alone())] == [1]  # nobody had heard of it yet
    saves.close()


def test_an_engine_that_holds_more_than_before_finds_room(tmp_path: Path) -> None:
    """Optimizers may make their moments in the first step."""
    small, ours = SliceEngine("plain", 0, 1, kinds=("master",)), engine(Alone())
    saves = store(tmp_path)
    saves.prepare(Alone(), small)
    begin(Alone(), saves, ours, 1)
    assert train(Alone(), saves)[0].succeeded
    assert loaded(tmp_path) == 1
    saves.close()


def test_a_bit_that_flips_between_copy_and_write_is_a_failed_save(tmp_path: Path) -> None:
    staged = np.arange(1000, dtype=np.float32)
    sums = ChunkChecksums(256)
    sums.add(staged.view(np.uint8))
    staged.view(np.uint8)[1500] ^= 4
    fragment = Fragment("a", "master", (1000,), 0, 1000)
    with pytest.raises(CheckpointError, match="chunk 5 of 16 is not what was copied"):
        write_rank_file(
            LocalStorage(),
            tmp_path,
            Identity(1, 0, 1),
            [fragment],
            iter([staged.view(np.uint8)]),
            chunk_bytes=256,
            expected=sums.all(),
        )


def test_checksums_of_the_source_are_those_of_the_file(tmp_path: Path) -> None:
    saves = store(tmp_path, checksum_source=True)
    for step in (1, 2):
        begin(Alone(), saves, engine(Alone()), step)
        assert train(Alone(), saves)[0].succeeded
    saves.close()
    assert loaded(tmp_path) == 2


# --- what fails ------------------------------------------------------------------------------

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

    problem = f"step 2 was not saved: rank {rank}: OSError: [Errno 28] No space left on device"
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
    drill("point=save.before_rename,action=sleep,value=0.5,step=2")
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


# --- slow, stuck, busy -----------------------------------------------------------------------


def test_a_slow_disk_does_not_stall_training(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=1,times=0")
    saves, ours = store(tmp_path, drills=True), engine(Alone())
    saves.prepare(Alone(), ours)
    begin(Alone(), saves, ours, 1)
    (report,) = train(Alone(), saves)
    assert report.succeeded
    assert report.write_s > 1
    assert report.stall_s < 0.25
    saves.close()


def test_a_save_that_finds_both_buffers_taken_waits(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=0.3,times=0")
    saves, ours = store(tmp_path, drills=True, keep_last=9), engine(Alone())
    reports = [r for step in (1, 2, 3) for r in begin(Alone(), saves, ours, step)]
    reports += saves.drain(Alone())
    saves.close()
    assert [(r.step, r.succeeded) for r in reports] == [(1, True), (2, True), (3, True)]
    assert [r.waited_s > 0.1 for r in reports] == [False, False, True]
    assert reports[2].stall_s >= reports[2].waited_s
    assert loaded(tmp_path) == 3


def test_or_it_is_skipped_and_said_to_be(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=0.3,times=0")

    def be_rank(world: ThreadWorld) -> list[SaveReport]:
        saves = store(tmp_path, drills=True, when_busy="skip", max_failed_saves=1)
        ours = engine(world)
        reports = [r for step in (1, 2, 3) for r in begin(world, saves, ours, step)]
        reports += saves.drain(world)
        saves.close()
        return reports

    for reports in ended(run_threads(2, be_rank)):
        assert [(r.step, r.succeeded, r.skipped) for r in reports] == [
            (3, False, True),
            (1, True, False),
            (2, True, False),
        ]
        assert "step 3 was not saved: step 1 is still being written" in reports[0].problem
        assert "1 skipped so far" in reports[0].problem
    assert loaded(tmp_path) == 2


def test_a_stuck_disk_is_given_up_with_its_age(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=hang,token=@")
    saves, ours = store(tmp_path, drills=True, writer_timeout_s=1.5), engine(Alone())
    begin(Alone(), saves, ours, 1)
    (report,) = train(Alone(), saves)
    assert not report.succeeded
    assert re.search(r"did nothing for 1\.5 s, \d\.\d s into its order: the disk", report.problem)
    begin(Alone(), saves, ours, 2)
    assert train(Alone(), saves)[0].succeeded
    saves.close()
    assert loaded(tmp_path) == 2


def test_a_stuck_disk_does_not_hold_up_the_end(
    tmp_path: Path, drill: Drill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer.checkpoint.background._EXIT_PATIENCE_S", 0.6)
    monkeypatch.setattr("trainer.checkpoint.background._LAST_PATIENCE_S", 0.3)
    drill("point=save.file_written,action=hang,times=0")
    saves, ours = store(tmp_path, drills=True, writer_timeout_s=3600), engine(Alone())
    started = time.monotonic()
    begin(Alone(), saves, ours, 1)
    assert not saves.drain(Alone())[0].succeeded
    assert not saves.save(Alone(), ours, step=2, training={}).succeeded
    saves.close()
    assert time.monotonic() - started < 5
    assert not writers(tmp_path)


# --- the process -----------------------------------------------------------------------------


def test_a_stopped_or_signalled_writer(tmp_path: Path) -> None:
    """Stop signals for the whole group are the rank's business; its end is the writer's."""
    saves, ours = store(tmp_path, writer_timeout_s=1.5), engine(Alone())
    begin(Alone(), saves, ours, 1)
    train(Alone(), saves)
    (pid,) = writers(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        os.kill(pid, number)
    begin(Alone(), saves, ours, 2)
    assert train(Alone(), saves)[0].succeeded
    assert writers(tmp_path) == [pid]
    os.kill(pid, signal.SIGSTOP)
    begin(Alone(), saves, ours, 3)
    assert "the disk is stuck" in train(Alone(), saves)[0].problem
    saves.close()
    assert not writers(tmp_path)
