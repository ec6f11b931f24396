"""A disk that is too small is said before a save, and refused where not even one would fit."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.run.room import warn_of_little_room
from launch.stand import Standing, plan_of
from tests.helpers.agent_process import Attempt, still_alive
from tests.helpers.configs import config
from tests.helpers.reports import step_report
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.errors import Exit, RunFolderError, TooManyFailedSaves
from trainer.observers.jsonl import JsonLines
from trainer.plan import RunPlan
from trainer.records.metrics import read_metrics
from trainer.records.room import free_bytes
from trainer.records.run_files import RunFiles

_MIB = 1 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount")
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)],
        check=False,
        capture_output=True,
        text=True,
    )
    if made.returncode:
        pytest.skip(f"no mount here: {made.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def _engine() -> SliceEngine:
    """Steps of 1.2 MiB."""
    return SliceEngine("plain", 0, 1, shapes=[("a", (100_000,))]).fill(1)


def test_the_next_save_that_will_not_fit_is_said_once_and_before_it_fails(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(small_disk / "checkpoints", expected_bytes=_MIB, keep_last=2)
    world, engine = Alone(), _engine()
    full = (
        rf"step \d was not saved: rank 0: the disk of {small_disk}/checkpoints is full \(No space "
        r"left on device\): 1\.1 MiB are needed for rank-00000\.safetensors, [\d.]+ KiB are free"
    )
    said = r"has [\d.]+ [KM]iB free, and 1.1 MiB are needed for the next checkpoint"

    def warnings() -> list[str]:
        return [r.getMessage() for r in caplog.records if "for the next checkpoint" in r.message]

    assert store.save(world, engine, step=1, training={}).succeeded
    assert store.save(world, engine, step=2, training={}).succeeded
    assert not warnings()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(_MIB))
    for step in (3, 4):
        report = store.save(world, engine, step=step, training={})
        assert not report.succeeded
        assert re.search(full, report.problem), report.problem
        (failed,) = [r.message for r in caplog.records if f"step {step} was not" in r.message]
        assert failed.endswith(
            "training goes on until 3 saves in a row have failed "
            f"(this is number {step - 2}; checkpoint.max_failed_saves)"
        )
    (once,) = warnings()
    assert re.search(said, once)
    ballast.unlink()
    assert store.save(world, engine, step=5, training={}).succeeded
    assert len(warnings()) == 1
    ballast.write_bytes(bytes(_MIB))  # and again
    assert not store.save(world, engine, step=6, training={}).succeeded
    assert len(warnings()) == 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_disk_that_stays_full_ends_the_run_with_what_to_do(
    small_disk: Path, caplog: pytest.LogCaptureFixture, *, asynchronous: bool
) -> None:
    run = small_disk / "mine"
    store = CheckpointStore(run / "checkpoints", max_failed_saves=2, asynchronous=asynchronous)
    (small_disk / "ballast").write_bytes(bytes(7 * _MIB // 2))
    assert not store.save(Alone(), _engine(), step=1, training={}).succeeded
    with pytest.raises(TooManyFailedSaves, match="2 saves in a row failed") as told:
        store.save(Alone(), _engine(), step=2, training={})
    store.close()
    assert f"the disk of {run}/checkpoints is full" in str(told.value)
    assert str(told.value).endswith(f"free space there, then longhaul resume {run}")
    assert "Errno" not in caplog.text + str(told.value)
    assert len([r for r in caplog.records if "was not saved" in r.message]) == 1


def test_a_disk_without_room_for_a_line_of_metrics_stops_the_run_with_what_to_do(
    small_disk: Path,
) -> None:
    """Else it would be started again and again, each time without its truth."""
    run = RunFiles(small_disk / "mine")
    metrics = JsonLines(run.metrics, attempt=1, attempt_facts={})
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(free_bytes(small_disk)))
    told = rf"the disk of {run.root} is full.* free space there, then longhaul resume {run.root}"
    report = step_report(1)

    def train() -> None:
        for _ in range(1000):  # beyond the end of the file's last page
            metrics.on_step(report)

    with pytest.raises(RunFolderError, match=told) as error:
        train()
    assert error.value.exit_code == Exit.STOP
    ballast.unlink()
    again = JsonLines(run.metrics, attempt=2, attempt_facts={})
    again.on_step(report)
    lines = read_metrics(run.metrics, "step")
    assert lines[-1]["attempt"] == 2


def test_a_run_folder_that_was_moved_away_stops_the_run_with_what_to_do(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "mine")
    metrics = JsonLines(run.metrics, attempt=1, attempt_facts={})
    run.root.rename(tmp_path / "moved")
    told = rf"^{run.root} was moved or removed while it trained; .* longhaul resume FOLDER goes on"
    with pytest.raises(RunFolderError, match=told) as error:
        metrics.on_step(step_report(1))
    assert error.value.exit_code == Exit.STOP


def test_an_agent_whose_run_folder_was_moved_away_says_so(tmp_path: Path) -> None:
    attempt = Attempt(tmp_path, ["wait"], ["wait"]).start().until_up()
    pids = [attempt.pid(rank) for rank in attempt.ranks]
    attempt.run.root.rename(tmp_path / "moved")
    with suppress(ProcessLookupError):  # the agent may have found out before
        os.kill(pids[0], signal.SIGKILL)
    code, _, said = attempt.end()
    assert code == Exit.STOP
    assert re.fullmatch(rf"{attempt.run.root} was moved or removed while it trained; .*\n", said)
    assert not still_alive(attempt.run)


def test_it_is_said_right_after_the_save_that_took_the_room(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CheckpointStore(small_disk / "checkpoints", expected_bytes=1, keep_last=9)
    for step in (1, 2, 3):
        assert not caplog.records
        assert store.save(Alone(), _engine(), step=step, training={}).succeeded
    assert "for the next checkpoint" in caplog.text


def test_a_start_without_room_for_one_checkpoint_is_refused_and_writes_nothing(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", f"run.root={small_disk}"]) == Exit.REFUSED
    said = capsys.readouterr().err
    assert "free, and" in said
    assert "are needed for one checkpoint; make room" in said
    assert not list(small_disk.iterdir())


def _plan(disk: Path) -> RunPlan:
    made = config(f"run.root={disk}")
    return plan_of(Standing(made, None, None), attempt=1, run_id="")


def test_room_for_one_but_not_for_all_that_are_kept_is_a_warning(small_disk: Path) -> None:
    plan = _plan(small_disk).model_copy(update={"checkpoint_bytes": int(1.2 * _MIB)})
    text = warn_of_little_room(plan, None)
    assert "3.6 MiB are needed for the 2 checkpoints that are kept" not in text
    plan = plan.model_copy(update={"checkpoint_bytes": int(1.5 * _MIB)})
    assert "4.5 MiB are needed for the 2 checkpoints that are kept" in warn_of_little_room(
        plan, None
    )
    run = RunFiles(small_disk / "r")
    for step in (1, 2):
        (run.checkpoints / f"step-{step:08d}").mkdir(parents=True)
    assert not warn_of_little_room(plan, run)  # they are there: one more is all it takes
