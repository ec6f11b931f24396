"""Ranks as real processes: signals, records, exit codes, and a foreign launcher."""

from __future__ import annotations

import contextlib
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from launch.start import write_down
from tests.helpers.tiny_run import tiny_plan, tiny_run
from trainer.errors import Exit
from trainer.records.attempt import read_done, read_error, read_started, read_stop
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles

_TIMEOUT_S = 400
_LONG = "steps.total=100000"


class Ranks:
    """The processes of one attempt, as a launcher starts them; killed at the end of the test."""

    def __init__(self, run: RunFiles, world_size: int, *, attempt: int = 1) -> None:
        port = _port_of_our_own()
        self.processes = []
        for rank in range(world_size):
            names = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            env = os.environ | {name: str(value) for name, value in names.items()}
            with run.attempt(attempt).rank_log(rank).open("w") as log:
                argv = [sys.executable, "-m", "trainer.worker", str(run.root)]
                argv += ["--attempt", str(attempt)]
                child = subprocess.Popen(argv, env=env, stdout=log, stderr=subprocess.STDOUT)
            self.processes.append(child)

    def codes(self) -> list[int]:
        return [process.wait(_TIMEOUT_S) for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


def _port_of_our_own() -> int:
    """Nobody is given it in the seconds until rank 0 listens: it is none that the kernel deals."""
    while True:
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", random.randrange(15_000, 30_000)))
            return int(free.getsockname()[1])


@pytest.fixture
def start() -> Iterator[type[Ranks]]:
    started: list[Ranks] = []

    class Remembered(Ranks):
        def __init__(self, run: RunFiles, world_size: int, *, attempt: int = 1) -> None:
            started.append(self)
            super().__init__(run, world_size, attempt=attempt)

    yield Remembered
    for ranks in started:
        ranks.kill()


def _logs(run: RunFiles, attempt: int = 1) -> str:
    return "\n".join(p.read_text() for p in sorted(run.attempt(attempt).root.glob("*.log")))


def _wait_for_step(run: RunFiles, step: int) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while not any(line["step"] >= step for line in read_metrics(run.metrics)):
        assert time.monotonic() < deadline, _logs(run)
        time.sleep(0.05)


def test_a_signal_to_one_rank_saves_on_all_at_the_same_step(
    start: type[Ranks], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path, ("resources.ranks_per_node=2", _LONG))
    ranks = start(run, 2)
    _wait_for_step(run, 3)
    ranks.processes[1].send_signal(signal.SIGUSR2)
    assert ranks.codes() == [Exit.SAVED, Exit.SAVED], _logs(run)
    files = run.attempt(1)
    (saved,) = [line["step"] for line in read_metrics(run.metrics, "save")]
    assert saved == read_metrics(run.metrics)[-1]["step"]
    assert (run.checkpoints / f"step-{saved:08d}" / "manifest.json").exists()
    started, stop = read_started(files.started), read_stop(files.stop)
    assert started is not None
    assert (started.step, started.world_size) == (0, 2)
    assert stop is not None
    assert (stop.cause, stop.detail) == ("scheduler", "SIGUSR2 to a rank")
    assert read_done(files.done) is None
    assert read_error(files.error) is None


def test_the_failing_rank_is_the_one_that_is_named(start: type[Ranks], tmp_path: Path) -> None:
    failing = (
        "task=custom",
        "task.target=tests.helpers.tasks:FailsOnOneRank",
        "task.settings={rank:1,at:5}",
        "run.trust=[tests]",
    )
    run = tiny_run(tmp_path, ("resources.ranks_per_node=2", _LONG, *failing))
    assert start(run, 2).codes() == [Exit.FAILED, Exit.FAILED], _logs(run)
    error = read_error(run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.kind, error.exit_code) == (1, "ValueError", Exit.FAILED)
    assert error.message == "a row of the user's own making"
    assert error.step == 2  # two micro-steps a step: the fifth is in step 3
    assert "tasks.py" in error.traceback
    assert read_done(run.attempt(1).done) is None


def test_torchrun_can_start_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As `train --no-start` writes it down, by the very line that it prints."""
    wanted = ("engine=zero3", "resources.ranks_per_node=2", "precision=fp32")
    assert write_down(tiny_plan(tmp_path, *wanted).config) == Exit.DONE
    run = RunFiles(tmp_path / "runs" / "tiny")
    assert not run.metrics.exists()
    name, *worker = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert name == "torchrun"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    result = subprocess.run(
        torchrun + worker, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    done = read_done(run.attempt(1).done)
    assert done is not None
    assert done.step == 6
    assert done.loss == read_metrics(run.metrics)[-1]["loss"]
    assert "step 6/6" in result.stdout  # rank 0 speaks plain lines to a pipe
    assert "FutureWarning" not in result.stderr


def _refused(argv: Sequence[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trainer.worker", *argv],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )


def test_what_a_rank_cannot_start_from_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("nowhere", "file"):
        missing = _refused([str(tmp_path / place), "--attempt", "1"])
        assert missing.returncode == Exit.STOP
        said = f"error: {tmp_path}/{place}/attempts/0001 is no attempt of a run: no plan.json; "
        assert missing.stderr == f"{said}give a run folder and one of its attempts\n"
    assert not (tmp_path / "nowhere").exists()  # and nothing is written
    second = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    silent = _refused([str(tmp_path / "nowhere"), "--attempt", "1"], **second)
    assert (silent.returncode, silent.stderr) == (Exit.STOP, "")  # the first of the node says it

    run = tiny_run(tmp_path, ("resources.ranks_per_node=2",))
    alone = _refused([str(run.root), "--attempt", "1"])
    assert alone.returncode == Exit.FAILED
    assert "WORLD_SIZE is 1, but this attempt was planned for 2 ranks" in alone.stderr
    assert "Traceback" not in alone.stderr

    (store,) = (tmp_path / "stores").glob("files-*/manifest.json")
    store.write_text(store.read_text().replace('"skipped_documents": 0', '"skipped_documents": 1'))
    plan = run.attempt(1).plan
    plan.write_text(plan.read_text().replace('"world_size": 2', '"world_size": 1'))
    other = _refused([str(run.root), "--attempt", "1"])
    assert other.returncode == Exit.STOP
    assert "is not the one this run was planned with" in other.stderr
    error = read_error(run.attempt(1).error)
    assert error is not None
    assert error.kind == "WorldError"  # the first failure stays


def test_a_stop_before_training_begins_changes_nothing(start: type[Ranks], tmp_path: Path) -> None:
    run = tiny_run(tmp_path, ("engine=plain", "resources.ranks_per_node=1", _LONG))
    ranks = start(run, 1)
    deadline = time.monotonic() + _TIMEOUT_S
    # The handlers stand before torch is imported; an imported torch maps its library.
    maps = Path(f"/proc/{ranks.processes[0].pid}/maps")
    while "libtorch_cpu" not in maps.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ranks.processes[0].send_signal(signal.SIGTERM)
    assert ranks.codes() == [Exit.SAVED], _logs(run)
    assert not run.checkpoints.exists()
    assert not run.attempt(1).started.exists()
