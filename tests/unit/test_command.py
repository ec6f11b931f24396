"""The command: verbs, messages, exit codes; and that it stays light."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launch.__main__ import VERBS, main
from launch.outcome import Outcome
from launch.run.attempts import close_attempt
from launch.run.ended import Ended, write_ended
from launch.run.job_record import JobRecord, write_job
from launch.run.liveness import ProcessMark, own_mark, write_mark
from launch.run.run_folder import create, new_attempt
from launch.settings.asked import overlaid, split
from launch.stand import stand
from tests.helpers.agent_process import wait_for
from tests.helpers.configs import config
from trainer.errors import ConfigError, Exit
from trainer.records.attempt import Done, ErrorRecord, Started, write_record
from trainer.records.built_ops import PARTS, ops_folder
from trainer.records.json_file import append_line
from trainer.records.ledger import Ledger
from trainer.records.run_files import RunFiles


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in; the runs are under runs/."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs"


def make(root: Path, name: str) -> RunFiles:
    config = {"run": {"name": name}, "steps": {"total": 300}, "checkpoint": {"keep_every": 0}}
    return create(root, config=config, frozen_hash="abc")


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb} " in said for verb in VERBS)
    assert "longhaul train --dry-run" in said


@pytest.mark.parametrize(
    "verb", sorted(set(VERBS) - {"evaluate", "generate", "ask", "export", "replay"})
)
def test_every_verb_has_help_with_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([verb, "--help"])
    except SystemExit as e:  # argparse leaves like this
        code = int(e.code or 0)
    said = capsys.readouterr().out
    assert code == 0
    assert "example" in said
    assert f"longhaul {verb}" in said


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["tarin"], "longhaul has no verb 'tarin'; did you mean train?"),
        (["xyzzy"], "longhaul has no verb 'xyzzy'; there is train, plan,"),
        (["steps.total=5"], "needs a verb before it: longhaul train steps.total=5"),
        (
            ["data", "prepar"],
            "longhaul data has no verb 'prepar'; there is prepare, audit, show, clean",
        ),
        (["checkpoint", "ls"], "longhaul checkpoint has no verb 'ls'; there is list,"),
        (["verify", "all"], "longhaul verify has no verb 'all'; there is layouts, resume"),
        (["status", "nobody"], "there is no run 'nobody' under runs/; runs/ has no runs"),
        (["logs", "nobody"], "there is no run 'nobody'"),
        (["stop", "nobody"], "there is no run 'nobody'"),
        (["resume", "nobody"], "there is no run 'nobody'"),
        (["export", "nobody"], "there is no run 'nobody'"),
        (["runs", "gc", "--keep", "0"], "the newest checkpoint of a run always stays"),
    ],
)
def test_a_wrong_line_is_answered_in_one_sentence_and_with_2(
    runs: Path, capsys: pytest.CaptureFixture[str], typed: list[str], answer: str
) -> None:
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert answer in said
    assert len(said.splitlines()) == 1
    assert not runs.exists()


def test_a_folder_that_is_no_run_has_code_78(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (runs / "mine").mkdir(parents=True)
    assert main(["status", "runs/mine"]) == 78
    assert "is not a run folder (it has no run.json)" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(runs, "one")
    assert main(["runs", "move", "one", "/dev/full/archive"]) == 2
    assert capsys.readouterr().err == "cannot write /dev/full/archive: Not a directory\n"
    assert main(["status", "one"]) == 0


def test_tables_are_also_json(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_record(new_attempt(make(runs, "one")).done, Done(time=1.0, step=300, loss=2.0))
    assert main(["status", "--json"]) == 0
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["run"], status["state"], status["total"]) == ("one", "finished", 300)
    assert main(["runs", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["run"], listed["state"]) == ("one", "finished")
    assert main(["runs", "gc", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_status_for_people(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new_attempt(make(runs, "one"))
    assert main(["status"]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].split() == [
        "run", "state", "step", "loss", "tokens/s", "checkpoint", "attempt", "left", "goodput",
    ]  # fmt: skip
    assert "one: ended without a word" in said


def test_tables_show_what_a_scheduler_adds_to_a_state(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(runs, "one")
    files = new_attempt(run)
    write_job(files, JobRecord("slurm", "12"))
    files.plan.write_text('{"config": {"steps": {"total": 300}}, "tokens_per_step": 64}')
    append_line(run.metrics, {"kind": "step", "step": 40, "loss": 3.5, "tokens_per_second": 9.0})
    (runs / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{runs / 'bin'}:{os.environ['PATH']}")
    squeue = runs / "bin" / "squeue"
    for row, state, note, why in (
        ("SUSPENDED|None|N/A|1:00|n1", "running", "suspended", "job 12 on n1 (suspended), 1:00"),
        ("PENDING|JobHeldUser|N/A|1:00|", "pending", "held", "job 12 waits: you hold it"),
        ("RUNNING|None|N/A|1:00|n1", "running", "", ""),
    ):
        squeue.write_text(f"#!/bin/sh\necho '12|{row}'\n")
        squeue.chmod(0o755)
        assert main(["status"]) == 0
        said = capsys.readouterr().out
        shown = f"{state} ({note})" if note else f"{state}  "
        assert shown in said
        assert (f"\none: {why}" in said) if why else ("one: " not in said)
        assert main(["runs", "list"]) == 0
        assert shown.strip() in capsys.readouterr().out
        assert main(["status", "--json"]) == 0
        (found,) = json.loads(capsys.readouterr().out)
        assert (found["state"], found["note"]) == (state, note)
        assert (found["left_s"] is None) is bool(note)  # what stands still has no rate


def test_logs_of_a_rank_and_why_it_failed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(runs, "one")
    assert main(["logs", "one"]) == 2
    assert "has not been started yet" in capsys.readouterr().err
    files = new_attempt(run)
    assert main(["logs", "one"]) == 2
    assert "has no logs: no rank was started" in capsys.readouterr().err
    files.rank_log(1).write_text("first\n\nlast\n")
    assert main(["logs", "one", "--rank", "1", "--lines", "2"]) == 0
    assert capsys.readouterr().out == "\nlast\n"
    assert main(["logs", "one", "--rank", "1"]) == 0
    assert capsys.readouterr().out == "first\n\nlast\n"
    assert main(["logs", "one", "--rank", "7"]) == 2
    assert "attempt 1 has no rank 7; it has ranks 1 to 1" in capsys.readouterr().err
    assert main(["logs", "one", "--attempt", "9"]) == 2
    assert "has no attempt 9; it has 1" in capsys.readouterr().err
    assert main(["logs", "one", "--why"]) == 0
    assert "no rank of attempt 1 failed: ended without a word" in capsys.readouterr().out
    error = ErrorRecord(
        time=1.0, rank=1, host="a", kind="DataError", message="row 3", exit_code=78,
        step=12, traceback="Traceback: x.py line 3",
    )  # fmt: skip
    write_record(files.error, error)
    assert main(["logs", "one", "--why"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("attempt 1: row 3\n  found by rank 1 at step 12 on a\n  its log: ")
    assert "Traceback: x.py line 3" in said
    write_record(files.error, replace(error, kind="ValueError", exit_code=76))
    assert main(["logs", "one", "--why"]) == 0
    assert "attempt 1: rank 1 failed: ValueError: row 3\n  at step 12 on" in capsys.readouterr().out


def test_followed_logs_wait_for_the_first_rank(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`longhaul logs RUN -f` is what `train` says to type, before any rank has started."""
    files = new_attempt(make(runs, "one"))
    write_mark(files.agent, own_mark())
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)

    def begin() -> None:
        wait_for(lambda: "; waiting" in told.getvalue())
        files.rank_log(0).write_text("first\n")
        write_ended(files.ended, Ended(time=1.0, codes={"0": 0}))

    thread = threading.Thread(target=begin, daemon=True)
    thread.start()
    assert main(["logs", "one", "--follow"]) == 0
    thread.join()
    assert capsys.readouterr().out == "first\n"
    assert told.getvalue().count("attempt 1 has no logs yet") == 1
    assert main(["logs", "one", "--follow", "--rank", "5"]) == 2, "there will be no such rank"


def test_why_of_a_run_that_goes_on_is_that_it_runs(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark = own_mark()
    write_mark(new_attempt(make(runs, "one")).agent, mark)
    assert main(["logs", "one", "--why"]) == 0
    how = f"it is running (process {mark.pid} on {mark.host})"
    assert capsys.readouterr().out == f"no rank of attempt 1 failed: {how}\n"


def test_a_restart_hides_no_failure(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(runs, "one")
    first = new_attempt(run)
    error = ErrorRecord(
        time=1.0, rank=1, host="a", kind="ValueError", message="row 3", exit_code=76, step=12
    )
    write_record(first.error, error)
    close_attempt(run, 1, Outcome("again", Exit.FAILED, "rank 1 failed: ValueError: row 3"))
    second = new_attempt(run)
    write_record(second.started, Started(time=2.0, step=10, world_size=2, host="a"))
    write_record(second.done, Done(time=3.0, step=300, loss=2.0))
    close_attempt(run, 2, Outcome("done", Exit.DONE, "finished at step 300"))
    assert main(["logs", "one", "--why"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("no rank of attempt 2 failed: finished at step 300\nthe newest that")
    assert "attempt 1: rank 1 failed: ValueError: row 3\n  at step 12 on a" in said
    assert "  then attempt 2 went on from step 10: finished at step 300" in said
    assert main(["logs", "one", "--why", "--attempt", "2"]) == 0  # asked for: no other is told
    assert capsys.readouterr().out == "no rank of attempt 2 failed: finished at step 300\n"


def test_of_an_agent_that_died_without_a_word_is_told_what_is_known(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make(runs, "one")
    write_mark(new_attempt(run).agent, ProcessMark(pid=7, start_ticks=1, host="a9", boot_id="x"))
    Ledger(run.ledger(0), attempt=1).write("spent", furthest=41)
    moment = time.mktime((2100, 5, 6, 7, 8, 9, 0, 0, -1))
    append_line(run.metrics, {"kind": "step", "attempt": 1, "step": 38, "time": moment})
    append_line(run.metrics, {"kind": "step", "attempt": 2, "step": 50, "time": moment + 60})
    close_attempt(run, 1, Outcome("again", Exit.FAILED, "ended without a word", "node"))
    new_attempt(run)
    assert main(["logs", "one", "--why", "--attempt", "1"]) == 0
    assert capsys.readouterr().out == (
        "no rank of attempt 1 failed: ended without a word\n"
        "  its agent, process 7 on a9, was killed, or that machine went down\n"
        "  step 41 was done; last sign of life 2100-05-06 07:08:09\n"
        "  then attempt 2 came after it\n"
    )


def test_stopping_what_does_not_run_says_how_it_stands(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(new_attempt(make(runs, "one")).done, Done(time=1.0, step=300, loss=2.0))
    assert main(["stop", "one"]) == 0
    assert capsys.readouterr().out == "one is not running (finished at step 300)\n"


def test_a_run_of_another_host_is_not_touched(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = new_attempt(make(runs, "one"))
    write_mark(files.agent, own_mark())
    value = json.loads(files.agent.read_text())
    files.agent.write_text(json.dumps(value | {"host": "elsewhere"}))
    assert main(["stop", "one"]) == 2
    assert "one runs on elsewhere; stop it there" in capsys.readouterr().err
    assert not files.stop.exists()


def test_overrides_on_stored_settings_take_only_what_they_name() -> None:
    stored = {"engine": {"kind": "deepspeed", "stage": 2}, "steps": {"total": 300, "save_every": 7}}
    composed = {"engine": {"kind": "plain"}, "steps": {"total": 600, "save_every": 100}}
    found = overlaid(stored, composed, ["engine=plain", "++steps.total=600"])
    assert found == {"engine": {"kind": "plain"}, "steps": {"total": 600, "save_every": 7}}
    assert stored["steps"]["total"] == 300
    with pytest.raises(ConfigError, match="experiment: cannot be put on the settings of an exist"):
        overlaid(stored, composed, ["+experiment=x"])


def test_settings_and_a_childs_options_are_told_apart() -> None:
    assert split(["one", "a.b=3", "--row", "4"]) == (["one", "a.b=3"], ["--row", "4"])
    assert split(["--row", "4", "a.b=3"]) == (["a.b=3"], ["--row", "4"])


def test_the_command_is_light() -> None:
    """The promise is 0.3 s of CPU for --help; benchmarks/startup.py has the figures.

    A busy machine with half a core's worth of a core needs several times as much.
    """
    code = (
        "import sys, time; from launch.__main__ import main; main(['--help']);"
        "heavy = {'torch', 'hydra', 'omegaconf', 'pydantic', 'rich', 'numpy'} & set(sys.modules);"
        "assert not heavy, heavy; assert time.process_time() < 2, time.process_time()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=300)


def test_a_run_whose_state_could_not_be_swapped_is_not_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LONGHAUL_OPS", str(tmp_path / "ops"))
    cpu = ("engine=zero3_offload_nvme", "resources.device=cpu")
    with pytest.raises(ConfigError, match=r"async_io .* not built here; .*build_async_io"):
        stand(config(*cpu, f"engine.nvme_path={tmp_path}"))
    folder = ops_folder("cpu")
    folder.mkdir(parents=True)
    for part in PARTS:
        (folder / f"{part}.so").touch()
    with pytest.raises(ConfigError, match=f"no folder {tmp_path}/disk to swap to"):
        stand(config(*cpu, f"engine.nvme_path={tmp_path}/disk"))
    stand(config(*cpu, f"engine.nvme_path={tmp_path}"))
