"""What becomes of a run on a real Slurm: two nodes of two ranks each, ranks that do not compute."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import SlurmRun, slurm_run
from trainer.records.attempt import read_error
from trainer.records.json_file import read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

Maker = Callable[..., SlurmRun]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        yield made


@pytest.fixture
def a_run(cluster: Cluster, tmp_path: Path) -> Iterator[Maker]:
    made: list[SlurmRun] = []

    def make(what: dict[str, list[str]], *settings: str) -> SlurmRun:
        made.append(slurm_run(cluster, tmp_path, what, *settings))
        return made[-1]

    yield make
    for each in made:
        cluster.run(["scancel", "--signal=KILL", "--full", each.job], check=False)
        cluster.run(["scancel", each.job], check=False)


def test_ranks_of_two_nodes_finish(a_run: Maker) -> None:
    one = a_run({"0": ["say", "hello", "there"]}).submit()
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "done", 0, None)]
    assert "hello there" in one.run.attempt(1).rank_log(0).read_text()
    assert read_json(one.run.attempt(1).ended)["codes"] == {str(r): 0 for r in range(4)}


def test_a_rank_that_is_killed_costs_one_attempt_in_the_same_job(a_run: Maker) -> None:
    one = a_run({"1:all": ["wait"], "1:0": ["wait"], "1:1": ["wait"], "1:2": ["wait"],
                 "1:3": ["wait"]}).submit().until_up()  # fmt: skip
    os.kill(_outer_pid(one, 3), signal.SIGKILL)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "crash"), (2, "done", 0, None)]
    error = read_error(one.run.attempt(1).error)
    assert error is not None
    assert (error.rank, error.host) == (3, "node2")
    assert one.job_of(1) == one.job_of(2) == one.job


def _outer_pid(one: SlurmRun, rank: int) -> int:
    """The rank's process as this machine numbers it: nodes count their own."""
    needle = f"RANK={rank}".encode()
    run = str(one.run.root).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, env = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if run in command and b"fake_worker" in command and needle in env.split(b"\0"):
            return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")
