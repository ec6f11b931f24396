"""A background save on a slow or stuck disk, or whose writer is stopped: nothing hangs."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.background import Drill, begin, ended, engine, loaded, store, train, writers
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.dist.world import Alone
from trainer.reports import SaveReport


def test_a_slow_disk_does_not_stall_training(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=6,times=0")
    saves, ours = store(tmp_path, drills=True), engine(Alone())
    saves.prepare(Alone(), ours)
    begin(Alone(), saves, ours, 1)
    (report,) = train(Alone(), saves)
    assert report.succeeded
    assert report.write_s > 6
    assert report.stall_s < 5  # far from its figure, which is the benchmark's
    saves.close()


def test_a_save_that_finds_both_buffers_taken_waits(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=3,times=0")
    saves, ours = store(tmp_path, drills=True, keep_last=9), engine(Alone())
    reports = [r for step in (1, 2, 3) for r in begin(Alone(), saves, ours, step)]
    reports += saves.drain(Alone())
    saves.close()
    assert [(r.step, r.succeeded) for r in reports] == [(1, True), (2, True), (3, True)]
    assert [r.waited_s > 1 for r in reports] == [False, False, True]
    assert reports[2].stall_s >= reports[2].waited_s
    assert loaded(tmp_path) == 3


def test_or_it_is_skipped_and_said_to_be(tmp_path: Path, drill: Drill) -> None:
    drill("point=save.file_written,action=sleep,value=3,times=0")

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
    saves, ours = store(tmp_path, drills=True, writer_timeout_s=12), engine(Alone())
    begin(Alone(), saves, ours, 1)
    (report,) = train(Alone(), saves)
    assert not report.succeeded
    assert re.search(r"did nothing for 12\.0 s, \d+\.\d s into its order: the disk", report.problem)
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
    assert time.monotonic() - started < 60  # of the hour that a writer has
    assert not writers(tmp_path)


def test_a_stopped_or_signalled_writer(tmp_path: Path) -> None:
    """Stop signals for the whole group are the rank's business; its end is the writer's."""
    saves, ours = store(tmp_path, writer_timeout_s=12), engine(Alone())
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
