"""`train`, `resume`, `stop` and `logs` as a user has them, with ranks that do not compute."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.run.run_folder import owner
from trainer.records.json_file import read_json, read_lines, write_json
from trainer.records.run_files import RunFiles

REPOSITORY = Path(__file__).parents[2]
FINISH = {"0": ["finish"], "1": ["finish"]}
WAIT = {"0": ["wait"], "1": ["wait"]}
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "corpus.txt").write_text("some text\n")
    return tmp_path


@pytest.fixture
def start(here: Path) -> Iterator[Start]:
    """`start("train", behaviours, "steps.total=9")`: the command in a process of its own."""
    processes = []

    def run(verb: str, behaviours: dict[str, Any], *arguments: str, **pipes: Any) -> Any:
        fake = verb in ("train", "resume")
        argv = [sys.executable, "-m", *(["tests.helpers.fake_ranks"] if fake else ["launch"]), verb]
        corpus = ("data=text_files", "data.sources.files.paths=[corpus.txt]")
        argv += [*arguments, *(corpus if verb == "train" else ())]
        env = dict(os.environ) | {
            "PYTHONPATH": str(REPOSITORY),
            "FAKE_BEHAVIOUR": json.dumps(behaviours),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | pipes
        processes.append(subprocess.Popen(argv, cwd=here, env=env, text=True, **pipes))
        return processes[-1]

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def test_a_run_from_its_first_step_to_a_longer_one(start: Start, here: Path) -> None:
    run = RunFiles(here / "runs" / "first-run")
    code, out, err = end(start("train", FINISH, "steps.total=300"))
    assert code == 0, err
    assert "first-run: finished at step 300, loss 1.5000; unigram entropy of the data 4.2500" in out
    assert "longhaul generate first-run" in out
    assert owner(run) == 1
    kept = run.run_json.read_text()

    code, out, err = end(start("train", FINISH, "steps.total=300"))
    assert code == 0, err
    assert "first-run is finished at step 300" in out
    assert "longhaul resume first-run steps.total=600" in out
    assert not run.attempt(2).root.exists()

    code, out, err = end(start("train", FINISH, "steps.total=301"))
    assert code == 0, err
    assert "first-run: finished at step 301" in out
    assert owner(run) == 2
    assert run.run_json.read_text() == kept

    code, out, err = end(start("resume", FINISH, "first-run", "steps.total=302", "engine=zero1"))
    assert code == 0, err
    plan = read_json(run.attempt(3).plan)
    assert plan["attempt"] == 3
    assert plan["run_id"] == read_json(run.run_json)["run_id"]
    assert (plan["config"]["steps"]["total"], plan["config"]["engine"]["stage"]) == (302, 1)
    assert plan["config"]["data"]["sources"]["files"]["paths"] == ["corpus.txt"]
    assert [line["exit_code"] for line in read_lines(run.attempts_log)] == [0, 0, 0]

    # What may not change, and the resume modes. Nothing is written by any of these.
    before = sorted(run.root.rglob("*"))
    code, _, err = end(start("train", FINISH, "steps.total=400", "run.seed=2"))
    assert code == 2
    assert "run.name: runs/first-run is a run with other settings" in err
    assert "run.seed: the run has 1, now it is 2" in err
    code, _, err = end(start("train", FINISH, "steps.total=400", "resume=never"))
    assert code == 2
    assert "resume=never, but the run runs/first-run exists" in err
    code, _, err = end(start("train", FINISH, "run.name=other", "resume=must"))
    assert code == 2
    assert "resume=must, but there is no run runs/other" in err
    (here / "corpus.txt").write_text("other text, longer than before\n")
    assert sorted(run.root.rglob("*")) == before


def test_a_store_that_is_no_longer_the_runs_is_refused(start: Start, here: Path) -> None:
    assert end(start("train", FINISH, "steps.total=300"))[0] == 0
    manifest = next((here / "stores").glob("*/manifest.json"))
    plan = RunFiles(here / "runs" / "first-run").attempt(1).plan
    plan.write_text(plan.read_text().replace('"manifest_digest": "', '"manifest_digest": "0'))
    assert manifest.exists()
    code, _, err = end(start("train", FINISH, "steps.total=301"))
    assert code == 2
    assert "data.sources.files: its text or its tokenizer has changed since" in err


def test_more_ranks_than_devices_are_refused_before_anything_is_written(
    start: Start, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    code, _, err = end(start("train", FINISH, "resources.device=cuda"))
    assert code == 2
    assert "resources.ranks_per_node: 2 ranks a node, but this machine has 1 CUDA device" in err
    assert "try: resources.ranks_per_node=1" in err
    assert not (here / "runs").exists()


def test_a_taken_port_is_refused_before_anything_is_written(start: Start, here: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        code, _, err = end(start("train", FINISH, f"resources.rendezvous_port={port}"))
    assert code == 2
    assert f"port {port} on 127.0.0.1 is taken" in err
    assert not (here / "runs").exists()


def test_more_machines_than_this_one_are_refused_before_anything_is_written(
    start: Start, here: Path
) -> None:
    code, _, err = end(start("train", FINISH, "resources.nodes=2", "batch.micro_batch_size=4"))
    assert code == 2
    assert "2 machines, but launch=local starts ranks on this one only" in err
    assert not (here / "runs").exists()


def test_a_folder_of_somebody_else_is_left_alone(start: Start, here: Path) -> None:
    thesis = here / "runs" / "first-run" / "thesis.txt"
    thesis.parent.mkdir(parents=True)
    thesis.write_text("precious")
    code, _, err = end(start("train", FINISH))
    assert code == 78
    assert "runs/first-run is not a run folder (it has no run.json)" in err
    assert [p.name for p in thesis.parent.iterdir()] == ["thesis.txt"]


def test_stop_saves_and_resume_goes_on(start: Start, here: Path) -> None:
    run = RunFiles(here / "runs" / "first-run")
    running = start("train", WAIT)
    wait_for((run.attempt(1).root / "up-1").exists)

    code, out, _ = end(start("status", {}))
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["first-run", "running"]
    code, _, err = end(start("train", WAIT))
    assert code == 2
    assert "run first-run is running already (attempt 1, process" in err
    code, _, err = end(start("runs", {}, "rename", "first-run", "other"))
    assert code == 2

    follower = start("logs", {}, "first-run", "--follow")
    code, out, err = end(start("stop", {}, "first-run"))
    assert (code, err) == (0, "")
    assert "first-run: stopped (user) and saved at step 5" in out
    code, out, _ = end(running)
    assert code == 75
    assert "longhaul resume first-run   goes on from step 5" in out
    assert end(follower)[0] == 0  # it ends with the attempt

    code, out, err = end(start("resume", FINISH, "first-run"))
    assert code == 0, err
    assert [line["action"] for line in read_lines(run.attempts_log)] == ["give_up", "done"]


def test_an_attempt_whose_agent_was_killed_is_closed_by_the_next(start: Start, here: Path) -> None:
    run = RunFiles(here / "runs" / "first-run")
    running = start("train", WAIT)
    wait_for((run.attempt(1).root / "up-1").exists)
    running.send_signal(signal.SIGKILL)
    running.wait()
    code, _, err = end(start("resume", FINISH, "first-run"))
    assert code == 0, err
    lines = list(read_lines(run.attempts_log))
    assert [line["why"] for line in lines] == ["ended without a word", "finished at step 300"]


def test_an_owner_on_another_host_is_judged_by_its_heartbeat(start: Start, here: Path) -> None:
    run = RunFiles(here / "runs" / "first-run")
    running = start("train", WAIT)
    wait_for((run.attempt(1).root / "up-1").exists)
    mark = read_json(run.attempt(1).agent)
    write_json(run.attempt(1).agent, mark | {"host": "elsewhere"})

    code, _, err = end(start("train", FINISH, "restart.lease_s=20"))
    assert code == 2
    assert "belongs to process" in err
    assert f"is running already (attempt 1, process {mark['pid']} on elsewhere)" in err
    assert "if that machine is gone for good: resume.takeover=true" in err
    assert not run.attempt(2).root.exists()

    running.kill()
    assert end(start("train", FINISH, "restart.lease_s=1"))[0] == 0
    assert owner(run) == 2


def test_a_run_can_be_taken_over_for_one_command(start: Start, here: Path) -> None:
    run = RunFiles(here / "runs" / "first-run")
    running = start("train", WAIT)
    wait_for((run.attempt(1).root / "up-1").exists)
    running.send_signal(signal.SIGSTOP)
    code, _, err = end(start("train", FINISH))
    assert code == 2
    assert f"is running already (attempt 1, process {running.pid} on " in err

    code, _, err = end(start("train", FINISH, "resume.takeover=true"))
    assert code == 0, err
    assert read_json(run.attempt(2).plan)["config"]["resume"]["takeover"] is False
    lines = (run.root / "attempts.jsonl").read_text()
    running.send_signal(signal.SIGCONT)
    code, _, err = end(running)
    assert code == 78
    assert "attempt 1 may no longer write to this run: attempt 2 (process" in err
    assert (run.root / "attempts.jsonl").read_text() == lines
    assert owner(run) == 2


def test_a_failure_tells_what_to_do_next(start: Start, here: Path) -> None:
    code, out, err = end(
        start("train", {"0": ["hang"], "1": ["raise", "row 17 is empty"]}, "restart=off")
    )
    assert code == 76
    assert "rank 1 failed: DataError: row 17 is empty" in err
    assert "longhaul logs first-run --why" in out
    assert "goes on from the start: nothing was saved yet" in out
    code, out, _ = end(start("logs", {}, "first-run", "--why"))
    assert "rank 1 failed: DataError: row 17 is empty" in out


def test_a_run_that_gives_up_says_what_it_tried(start: Start, here: Path) -> None:
    code, out, err = end(start("train", {"0": ["die"], "1": ["wait"]}))
    assert code == 79
    assert "attempt 3 goes on from the start: nothing was saved yet" in err
    assert "first-run: rank 0 was killed by signal 9 (SIGKILL); 3 attempts in a row " in out
    assert "longhaul logs first-run --why" in out
    code, out, _ = end(start("status", {}))
    assert out.splitlines()[1].split()[1:3] == ["gave", "up"]


def test_on_a_terminal_rank_0_has_a_terminal_and_its_log_has_plain_lines(
    start: Start, here: Path
) -> None:
    drawn = "\x1b[2K10 %\r\x1b[2K\x1b[32m100 %\x1b[0m"
    behaviours = {"0": ["say", drawn], "1": ["say", "quiet"]}
    ours, theirs = pty.openpty()
    process = start("train", behaviours, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:
            break
    os.close(ours)
    assert process.wait(timeout=300) == 0
    assert b"\x1b[32m100 %" in seen
    log = RunFiles(here / "runs" / "first-run").attempt(1).rank_log(0).read_text()
    assert log == "a terminal: True\n100 %\n"


@pytest.mark.parametrize(("times", "code"), [(1, 75), (2, 130)])
def test_ctrl_c_typed_in_a_terminal(start: Start, here: Path, times: int, code: int) -> None:
    """The terminal signals its whole foreground group; ranks must hear it from the agent only."""
    run = RunFiles(here / "runs" / "first-run")
    ours, theirs = pty.openpty()
    process = start(
        "train",
        WAIT if times == 1 else {"0": ["hang"], "1": ["hang"]},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    wait_for((run.attempt(1).root / "up-1").exists)
    wait_for((run.attempt(1).root / "up-0").exists)
    for time_of in range(times):
        os.write(ours, b"\x03")
        if time_of == 0:
            wait_for(run.attempt(1).stop.exists)
    assert process.wait(timeout=300) == code
    os.close(ours)
    if times == 1:
        told = [(run.attempt(1).root / f"told-{rank}").read_text() for rank in range(2)]
        assert told == ["15", "15"]
    (line,) = read_lines(run.attempts_log)
    assert line["exit_code"] == code
