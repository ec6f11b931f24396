"""Nodes that die, are cut off, or fail again and again: a fresh Slurm of three nodes each time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.run.run_folder import owner
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import RANKS, SlurmRun, slurm_run
from trainer.records.json_file import read_json

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path / "cluster", nodes=3, slurmd_timeout=5, lab=True) as made:
        yield made


def first(what: str) -> dict[str, list[str]]:
    return {"all": ["finish"]} | {f"1:{rank}": [what] for rank in range(RANKS)}


def nodes_of(one: SlurmRun, attempt: int) -> list[str]:
    folder = one.run.attempt(attempt).root / "nodes"
    return [read_json(path)["host"] for path in sorted(folder.glob("node-*.json"))]


def test_the_node_of_the_batch_script_dies_and_costs_one_attempt(
    cluster: Cluster, tmp_path: Path
) -> None:
    one = slurm_run(cluster, tmp_path, first("wait")).submit().until_up()
    assert nodes_of(one, 1) == ["node1", "node2"]
    cluster.lab.node("node1").power_off()
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "node"), (2, "done", 0, None)]
    assert nodes_of(one, 2) == ["node2", "node3"]
    assert one.job_of(2) == one.job


def test_a_node_that_is_cut_off_is_replaced_and_its_ranks_may_write_no_more(
    cluster: Cluster, tmp_path: Path
) -> None:
    one = slurm_run(cluster, tmp_path, first("wait")).submit().until_up()
    cut = cluster.lab.node("node2")
    cut.cut()
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.until_over() == "COMPLETED", one.words
    assert one.ends == [(1, "again", 76, "node"), (2, "done", 0, None)]
    assert nodes_of(one, 2) == ["node1", "node3"]
    assert owner(one.run) == 2
    cut.join()  # Slurm finds the old ranks there and ends them
    cluster.wait(lambda: "fake_worker" not in cut.run(["ps", "axww"], check=False))
    assert len(one.lines) == 2


def test_a_node_where_it_fails_twice_is_left_out_if_there_is_another(
    cluster: Cluster, tmp_path: Path
) -> None:
    what = {"all": ["finish"]} | {f"{n}:{r}": ["wait"] for n in (1, 2) for r in range(RANKS)}
    what |= {"1:2": ["die"], "2:3": ["die"]}
    one = slurm_run(cluster, tmp_path, what, "launch.spare_nodes=1").submit()
    assert one.until_over() == "COMPLETED", one.words
    assert [end[2] for end in one.ends] == [76, 76, 0]
    assert nodes_of(one, 2) == ["node1", "node2"]
    assert nodes_of(one, 3) == ["node1", "node3"]
    assert "left out from here on: node2 (it failed there 2 times in a row)" in one.words


def test_a_new_job_goes_on_without_the_node_whose_numbers_were_wrong(
    cluster: Cluster, tmp_path: Path
) -> None:
    """No spare node is in the allocation, but Slurm has one."""
    what = first("wait") | {"1:2": ["differ", "ranks 0 and 2 hold other weights"]}
    one = slurm_run(cluster, tmp_path, what).submit()
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.ends == [(1, "again", 76, "hardware"), (2, "done", 0, None)], one.words
    assert nodes_of(one, 1) == ["node1", "node2"]
    assert nodes_of(one, 2) == ["node1", "node3"]
    assert one.until_over() == "COMPLETED", one.words  # what it was asked to do it did
    assert one.job_of(2) != one.job
    assert one.job_of(1) == one.job_of(2), "attempt 1 names the job that is to be asked about"
    assert cluster.until_state(one.job_of(2), "COMPLETED") == "COMPLETED", one.words
    assert f"job {one.job_of(2)} goes on after this one" in one.words
    assert one.state == "finished"


def test_jobs_of_a_chain_go_on_one_after_another(cluster: Cluster, tmp_path: Path) -> None:
    one = slurm_run(
        cluster, tmp_path, first("wait"), "launch.chain=3", "launch.requeue=false"
    ).submit()
    one.until_up()
    jobs = read_json(one.run.attempt(1).root / "submission" / "job.json")
    assert len(jobs["chain"]) == 2
    cluster.run(["scancel", "--signal=USR1", one.job])
    last = jobs["chain"][-1]
    assert cluster.until_state(last, "COMPLETED") == "COMPLETED", one.words
    assert one.ends == [(1, "again", 75, "time_limit"), (2, "done", 0, None)]
    assert one.job_of(2) == jobs["chain"][0]
    assert one.state == "finished"
