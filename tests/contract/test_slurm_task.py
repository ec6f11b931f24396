"""The parent of one rank under srun, without Slurm: what it says of the rank, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.outcome import decide, observe
from launch.run.node_record import read_nodes
from tests.helpers.agent_process import Attempt
from trainer.errors import Exit

RANKS = 2


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    one = Attempt(tmp_path, *([["wait"]] * RANKS))
    one.env |= {"TMPDIR": str(tmp_path)}
    yield one
    assert not list(tmp_path.glob("longhaul-*"))  # the node's own folder


def tasks(one: Attempt) -> list[subprocess.Popen[bytes]]:
    """As srun starts them on one node."""
    shared = {
        "SLURM_NODEID": "0",
        "SLURM_STEP_NUM_TASKS": str(RANKS),
        "SLURM_JOB_ID": "12",
        "SLURM_STEP_ID": "0",
        "SLURMD_NODENAME": "n1",
        "SLURM_STEP_NODELIST": "n1",
    }
    argv = [sys.executable, "-m", "launch.slurm.task", str(one.run.root), "--attempt", "1"]
    started = []
    for rank in range(RANKS):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        started.append(subprocess.Popen(argv, env=one.env | shared | own))
    one.until_up()
    return started


def codes(started: list[subprocess.Popen[bytes]]) -> list[int]:
    return [each.wait(timeout=300) for each in started]


def test_a_rank_that_saved_is_a_good_end_for_srun_and_its_own_code_is_kept(
    attempt: Attempt,
) -> None:
    """srun ends all tasks with the first that ends badly: 75 would cut the others' saves off."""
    started = tasks(attempt)
    for each in started:
        each.send_signal(signal.SIGTERM)
    assert codes(started) == [0, 0]
    (node,) = read_nodes(attempt.files)
    assert (node.over, node.codes) == (True, {"0": Exit.SAVED, "1": Exit.SAVED})
    outcome = decide(observe(attempt.run, 1))
    assert (outcome.exit_code, outcome.cause) == (Exit.SAVED, "preempt")
    assert json.loads(attempt.files.stop.read_text())["detail"] == "SIGTERM from Slurm"


def test_ranks_that_heard_a_signal_before_their_parents_were_stopped_and_did_not_fail(
    attempt: Attempt,
) -> None:
    started = tasks(attempt)
    for rank in range(RANKS):
        os.kill(attempt.pid(rank), signal.SIGTERM)
    assert codes(started) == [0, 0]
    outcome = decide(observe(attempt.run, 1))
    assert outcome.why == "stopped (scheduler) and saved at step 5"


def test_a_rank_that_failed_is_a_bad_end_and_is_named(tmp_path: Path) -> None:
    one = Attempt(tmp_path, ["wait"], ["exit", "3"])
    one.env |= {"TMPDIR": str(tmp_path)}
    started = tasks(one)
    assert started[1].wait(timeout=300) == 3
    started[0].send_signal(signal.SIGTERM)  # as srun then does
    assert started[0].wait(timeout=300) in (0, 3, Exit.FAILED)
    outcome = decide(observe(one.run, 1))
    assert (outcome.action, outcome.exit_code, outcome.cause) == ("again", Exit.FAILED, "crash")
    assert "rank 1" in outcome.why
