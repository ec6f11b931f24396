"""Run folders: made whole, found by name or path, never mistaken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.run.ended import Ended, write_ended
from launch.run.housekeeping import move, remove, rename, rubbish
from launch.run.job_record import Job, JobRecord, JobState, write_job
from launch.run.liveness import is_alive, own_mark, read_mark, write_mark
from launch.run.run_folder import (
    attempts,
    create,
    existing,
    find,
    is_being_stopped,
    list_runs,
    new_attempt,
    owner,
    read_record,
    refuse_if_running,
    running,
)
from launch.run.standing import free_to_start
from launch.run.status import status_of
from launch.why import why_text
from trainer.errors import Refused, RunFolderError
from trainer.records.attempt import Done, Stop, StopCause, write_record
from trainer.records.run_files import RunFiles


def make(root: Path, name: str = "first") -> RunFiles:
    checkpoint = {"keep_last": 2, "keep_every": 400}
    config = {"run": {"name": name}, "steps": {"total": 300}, "checkpoint": checkpoint}
    return create(root, config=config, frozen_hash="abc")


def save(run: RunFiles, *steps: int) -> None:
    for step in steps:
        folder = run.checkpoints / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")


def test_a_new_run_is_whole_private_and_knows_who_it_is(tmp_path: Path) -> None:
    run = make(tmp_path / "runs")
    record = read_record(run)
    assert (record.name, record.frozen_hash) == ("first", "abc")
    assert len(record.run_id) == 16
    assert "python" in record.versions
    assert run.root.stat().st_mode & 0o777 == 0o700
    assert run.run_json.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in run.root.parent.iterdir()] == ["first"]


def test_nothing_in_a_run_names_its_own_place(tmp_path: Path) -> None:
    run = make(tmp_path)
    files = new_attempt(run)
    write_mark(files.agent, own_mark())
    for path in run.root.rglob("*"):
        if path.is_file():
            assert str(tmp_path) not in path.read_text()


def test_attempts_are_numbered_and_the_newest_owns_the_run(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert owner(run) is None
    assert [new_attempt(run).number for _ in range(3)] == [1, 2, 3]
    assert [files.root.name for files in attempts(run)] == ["0001", "0002", "0003"]
    assert owner(run) == 3


def test_a_run_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert find("first", root=tmp_path) == run
    assert find(str(run.root), root=Path("elsewhere")) == run
    assert existing(tmp_path, "first") == run
    assert existing(tmp_path, "second") is None
    assert list_runs(tmp_path) == [run]


def test_an_unknown_name_is_answered_with_the_nearest(tmp_path: Path) -> None:
    make(tmp_path, "baseline")
    with pytest.raises(Refused, match=r"no run 'baselnie' under .*; did you mean baseline\?"):
        find("baselnie", root=tmp_path)
    with pytest.raises(Refused, match="; there is baseline"):
        find("zzz", root=tmp_path)
    with pytest.raises(Refused, match="none/ has no runs"):
        find("zzz", root=tmp_path / "none")


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunFolderError, match=r"is not a run folder \(it has no run.json\)"):
        existing(tmp_path, "mine")
    with pytest.raises(RunFolderError, match="cannot create the run folder"):
        make(tmp_path, "mine")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="it is not a folder"):
        existing(tmp_path, "file")


def test_an_empty_folder_is_a_free_place(tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    assert existing(tmp_path, "first") is None
    assert make(tmp_path).run_json.exists()


def test_a_damaged_or_newer_run_json_is_refused(tmp_path: Path) -> None:
    run = make(tmp_path)
    value = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps(value | {"format": 9}))
    with pytest.raises(RunFolderError, match="has format 9, this version reads 1"):
        read_record(run)
    run.run_json.write_text("{")
    with pytest.raises(RunFolderError, match="is damaged"):
        read_record(run)


def test_a_running_agent_is_known_by_more_than_its_pid(tmp_path: Path) -> None:
    run = make(tmp_path)
    files = new_attempt(run)
    assert running(run) is None
    write_mark(files.agent, own_mark())
    assert running(run) == own_mark()
    with pytest.raises(Refused, match=r"run first is running already \(attempt 1, process"):
        refuse_if_running(run)
    stale = json.loads(files.agent.read_text())
    files.agent.write_text(json.dumps(stale | {"start_ticks": stale["start_ticks"] - 1}))
    assert running(run) is None  # the pid lives, but it is another process's by now
    files.agent.write_text("{")
    assert read_mark(files.agent) is None


def test_a_process_that_ended_is_not_alive() -> None:
    code = (
        "import json; from dataclasses import asdict; from launch.run.liveness import own_mark;"
        "print(json.dumps(asdict(own_mark())))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    mark = type(own_mark())(**json.loads(said.stdout))
    assert mark.boot_id == own_mark().boot_id
    assert not is_alive(mark)
    assert is_alive(own_mark())


def test_a_run_can_be_renamed_and_moved_and_stays_itself(tmp_path: Path) -> None:
    run = make(tmp_path / "runs")
    before = read_record(run)
    run = move(rename(run, "second"), tmp_path / "archive")
    assert run.root == tmp_path / "archive" / "second"
    assert read_record(run) == before
    assert not list((tmp_path / "runs").iterdir())


def test_renaming_refuses_what_cannot_be(tmp_path: Path) -> None:
    run = make(tmp_path)
    make(tmp_path, "taken")
    with pytest.raises(Refused, match="exists already"):
        rename(run, "taken")
    with pytest.raises(Refused, match=r"'\.\./x' cannot be a run's name"):
        rename(run, "../x")
    with pytest.raises(Refused, match="is a run itself"):
        move(run, tmp_path / "taken")
    with pytest.raises(Refused, match="is no folder of runs"):
        move(run, tmp_path / "fresh-name")
    write_mark(new_attempt(run).agent, own_mark())
    with pytest.raises(Refused, match="is running already"):
        rename(run, "other")


def test_gc_lists_superseded_checkpoints_and_removes_only_those(tmp_path: Path) -> None:
    run = make(tmp_path)
    save(run, 100, 200, 300)
    (run.checkpoints / "step-00000400.incoming-2").mkdir()
    (run.checkpoints / "step-00000050.removing").mkdir()
    found = rubbish([run], keep=1, failed=False)
    assert [(one.path.name, one.why) for one in found] == [
        ("step-00000100", "not among the newest 1 of 3; the run itself keeps 2"),
        ("step-00000200", "not among the newest 1 of 3; the run itself keeps 2"),
        ("step-00000400.incoming-2", "left by a save that did not end"),
        ("step-00000050.removing", "left by a removal that did not end"),
    ]
    for one in found:
        remove(one, run)
    assert [p.name for p in run.checkpoints.iterdir()] == ["step-00000300"]


def test_gc_keeps_what_the_run_itself_promises_to_keep(tmp_path: Path) -> None:
    run = make(tmp_path)
    save(run, 300, 400, 500, 600, 700)
    found = rubbish([run], keep=None, failed=False)
    assert [(one.path.name, one.why) for one in found] == [
        ("step-00000300", "not among the newest 2 of 5"),
        ("step-00000500", "not among the newest 2 of 5"),
    ]
    plan = {"config": {"checkpoint": {"keep_last": 4, "keep_every": 0}}}
    new_attempt(run).plan.write_text(json.dumps(plan))  # the newest attempt's settings count
    found = rubbish([run], keep=None, failed=False)
    assert [one.path.name for one in found] == ["step-00000300"]
    run.run_json.write_text("{")
    new_attempt(run).plan.write_text("{")
    run.attempt(1).plan.unlink()
    assert rubbish([run], keep=None, failed=False) == []  # nothing is known: nothing goes


def test_gc_takes_failed_runs_only_when_asked_and_running_ones_never(tmp_path: Path) -> None:
    failed, finished, live = (make(tmp_path, name) for name in ("failed", "finished", "live"))
    new_attempt(failed)
    write_record(new_attempt(finished).done, Done(time=1.0, step=300, loss=2.0))
    write_mark(new_attempt(live).agent, own_mark())
    save(live, 100, 200)
    runs = [failed, finished, live]
    assert rubbish(runs, keep=1, failed=False) == []
    (one,) = rubbish(runs, keep=1, failed=True)
    assert one.path == failed.root
    remove(one, failed)
    assert not failed.root.exists()


@pytest.mark.parametrize("left", ["step-00000100", "step-100/manifest.json"])
def test_gc_leaves_a_failed_run_in_which_something_may_be_a_checkpoint(
    tmp_path: Path, left: str
) -> None:
    run = make(tmp_path, "failed")
    new_attempt(run)
    (run.checkpoints / "step-00000100.incoming-0001").mkdir(parents=True)
    assert [one.path for one in rubbish([run], keep=None, failed=True)] == [run.root]
    (run.checkpoints / left).mkdir(parents=True)
    taken = [one.path.name for one in rubbish([run], keep=None, failed=True)]
    assert taken == ["step-00000100.incoming-0001"]


def test_status_says_how_a_run_stands(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert status_of(run).state == "new"
    files = new_attempt(run)
    assert status_of(run).state == "failed"
    assert status_of(run).why == "ended without a word"
    write_mark(files.agent, own_mark())
    run.metrics.write_text(
        '{"kind": "step", "step": 40, "loss": 3.5, "tokens_per_second": 1000.0}\n'
        '{"kind": "eval", "step": 40, "eval_loss": 3.6}\n{"kind": "step", "st'
    )
    status = status_of(run)
    assert (status.state, status.step, status.total, status.loss) == ("running", 40, 300, 3.5)
    files.agent.unlink()
    write_record(files.done, Done(time=1.0, step=300, loss=2.0))
    assert status_of(run).state == "finished"


def test_a_run_that_is_removed_while_somebody_looks_spoils_no_table(tmp_path: Path) -> None:
    gone = RunFiles(tmp_path / "gone")
    assert not is_being_stopped(gone)
    told = why_text(gone, gone.attempt(1), is_chosen=True)
    assert told.startswith("no rank of attempt 1 failed")


@pytest.mark.parametrize(("cause", "state"), [("user", "stopping"), ("scheduler", "running")])
def test_a_run_that_was_told_to_stop_is_stopping_until_it_is_over(
    tmp_path: Path, cause: StopCause, state: str
) -> None:
    """Ray and Slurm call a job running for seconds after its ranks have saved and left."""
    run = make(tmp_path)
    files = new_attempt(run)
    write_mark(files.agent, own_mark())
    busy = Job(JobState.RUNNING, "on its node")
    assert (status_of(run).state, status_of(run, busy).state) == ("running", "running")
    write_record(files.stop, Stop(cause, time=1.0))
    assert (status_of(run).state, status_of(run, busy).state) == (state, state)
    assert status_of(run, Job(JobState.PENDING)).state == "pending"
    write_ended(files.ended, Ended(time=2.0, codes={"0": 75}))
    assert status_of(run, busy).state == state
    assert status_of(run).state == status_of(run, Job(JobState.ENDED)).state == "stopped"


def test_a_run_whose_job_is_being_stopped_is_not_started_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make(tmp_path)
    files = new_attempt(run)
    write_job(files, JobRecord("slurm", "12"))
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "squeue").write_text("#!/bin/sh\necho '12|RUNNING|None|N/A|1:00:00|node1'\n")
    (tools / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(Refused, match="run first is running already: ") as caught:
        free_to_start(run, lease_s=30.0, takeover=False)
    assert f"`longhaul stop {run.root}`" in str(caught.value)  # not under runs/: by its path
    write_record(files.stop, Stop("user", time=1.0))
    with pytest.raises(Refused, match=r"run first was told to stop and is not over: .*try once"):
        free_to_start(run, lease_s=30.0, takeover=False)
