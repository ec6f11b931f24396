"""Trials that are jobs of a scheduler: what waits in a queue, what it costs, who is told."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.node.inbox import SignalInbox
from launch.run.job_record import Job, JobRecord, JobState, write_job
from launch.run.lease import BEAT_FILE
from launch.run.standing import Standing
from launch.sweep import one
from launch.sweep.cost import cost_so_far
from launch.sweep.folder import SweepFiles, write_sweep
from launch.sweep.journal import Journal, read_trials
from launch.sweep.place import Runs
from launch.sweep.table import as_text, status_of_sweep
from tests.helpers.configs import config
from tests.helpers.sweeps import section
from trainer.errors import Exit
from trainer.records.attempt import read_stop
from trainer.records.json_file import append_line, write_json
from trainer.records.run_files import RunFiles

Says = Callable[[str, str], None]
_THREE = """\
echo '11|RUNNING|None|N/A|1:00:00|node1'
echo '12|PENDING|Priority|N/A|N/A|'
echo '13|PENDING|Resources|N/A|N/A|'
"""


@pytest.fixture
def says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Says:
    """says("squeue", "true"): a command of Slurm is this line of shell; `calls` has its words."""
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")

    def put(name: str, body: str) -> None:
        text = f'#!/bin/sh\necho "{name} $*" >> "{tmp_path}/calls"\n{body}\n'
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)

    for name in ("sacct", "scancel"):
        put(name, "true")
    put("squeue", _THREE)
    return put


def calls(folder: Path, name: str) -> list[str]:
    return [x for x in (folder / "calls").read_text().splitlines() if x.startswith(f"{name} ")]


def jobs(root: Path, count: int = 3) -> SweepFiles:
    """A sweep whose first trials are jobs 11, 12, 13; nobody carries it."""
    files = SweepFiles(root / "lr")
    sweep = section(trials=9).model_dump(mode="json")
    write_sweep(files, {"sweep": sweep}, {"overrides": [], "config_dirs": []})
    journal = Journal(files.trials)
    journal.ask_for(9)
    for number in range(1, count + 1):
        journal.write("proposed", number, bracket=0, point={}, overrides=[f"run.seed={number}"])
        journal.write("started", number)
        attempt = files.run(number).attempt(1)
        attempt.root.mkdir(parents=True)
        write_job(attempt, JobRecord("slurm", f"{10 + number}"))
    return files


def test_status_of_a_sweep_asks_the_scheduler_once_for_all_trials(
    tmp_path: Path, says: Says
) -> None:
    found = status_of_sweep(jobs(tmp_path), now=0.0)
    assert [row["state"] for row in found.rows] == ["active", "queued", "queued"]
    assert found.trials == {"active": 1, "queued": 2}
    text = as_text(found)
    assert "lr: stopped; 3 of 9 trials (1 active, 2 queued), 0 GPU-hours" in text
    assert "trial 1: job 11 on node1" in text
    assert "trial 2: job 12 waits" in text
    assert len(calls(tmp_path, "squeue")) == 1


def test_what_waits_in_a_queue_takes_room_and_costs_nothing(tmp_path: Path, says: Says) -> None:
    files = jobs(tmp_path)
    trials = list(read_trials(files.trials).values())
    seen = Runs(files, lambda _: config(), SignalInbox()).look(trials)
    assert [each.how for each in seen] == ["active"] * 3
    assert [each.is_queued for each in seen] == [False, True, True]
    assert [each.rank_seconds for each in seen] == [0.0] * 3
    assert not any(each.has_heard for each in seen)
    assert len(calls(tmp_path, "squeue")) == 1


def test_stop_reaches_every_job_also_where_one_is_not_taken(
    tmp_path: Path, says: Says, capsys: pytest.CaptureFixture[str]
) -> None:
    """The running one is told, the waiting ones are withdrawn; the scheduler misses the second."""
    says("scancel", 'case "$*" in *" 12") echo "scancel: error: timed out" >&2; exit 1;; esac')
    files = jobs(tmp_path)
    assert main(["stop", "lr", "--root", str(tmp_path)]) == Exit.FAILED
    said = capsys.readouterr()
    assert said.out == "lr is not running; 2 of its trials were told\n"
    assert "lr-0002 cannot be stopped now" in said.err
    told = calls(tmp_path, "scancel")
    assert "scancel --signal=TERM 11" in told
    assert "scancel --state=PENDING 13" in told
    stops = [read_stop(files.run(number).attempt(1).stop) for number in (1, 2, 3)]
    assert [stop.cause if stop else "" for stop in stops] == ["user"] * 3


@pytest.mark.parametrize(
    ("state", "now", "expected"),
    [
        (JobState.PENDING, 9000.0, 60.0),  # of its first attempt, which a lost node ended
        (JobState.RUNNING, 1050.0, 60.0 + 2 * 20.0),
        (JobState.RUNNING, 9000.0, 60.0 + 2 * 5.0),  # it runs again, and says nothing yet
        (JobState.UNKNOWN, 1050.0, 60.0 + 2 * 20.0),
        (JobState.ENDED, 9000.0, 60.0),
    ],
)
def test_a_job_that_was_requeued_costs_nothing_until_it_runs_again(
    tmp_path: Path, state: JobState, now: float, expected: float
) -> None:
    """Two ranks; the last line of the ledger is of second 1030, the last sign of life of 1035."""
    run = RunFiles(tmp_path / "lr-0001")
    attempt = run.attempt(1)
    attempt.root.mkdir(parents=True)
    run.ledger(0).parent.mkdir(parents=True)
    for event, second in (("attempt", 0), ("spent", 30)):
        facts = {"event": event, "attempt": 1, "boot": "b", "world_size": 2}
        append_line(run.ledger(0), facts | {"time": 1000.0 + second, "clock": 10.0 + second})
    (attempt.root / BEAT_FILE).write_text("1")
    os.utime(attempt.root / BEAT_FILE, (1035.0, 1035.0))
    standing = Standing(attempt, JobRecord("slurm", "11"), Job(state))
    assert cost_so_far(run, standing, now=now) == pytest.approx(expected)


def test_what_the_place_refuses_is_told_from_what_the_settings_make_impossible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    words = ("launch=slurm", "launch.gpus=none", "resources.device=cpu", f"run.root={tmp_path}")
    path = tmp_path / "0001.json"
    values = config(*words).model_dump(mode="json")
    write_json(path, values)
    assert one.main([str(path)]) == one.NOT_TAKEN
    assert "sbatch, squeue, scancel not found on PATH" in capsys.readouterr().err
    values["optimizer"]["learning_rate"] = -1.0
    write_json(path, values)
    assert one.main([str(path)]) == Exit.REFUSED
    assert json.loads((tmp_path / "0001.process").read_text())["pid"] == os.getpid()
