"""A Slurm that keeps accounts: who may use what, preemption by QOS, and jobs it has forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import RANKS, slurm_run

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("slurm")
    with slurm_cluster(folder, nodes=2, accounts=True, min_job_age=2) as made:
        yield made


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("launch.account=theirs", "try: launch.account=...; sacctmgr show associations"),
        ("launch.qos=gold", "try: launch.qos=...; sacctmgr show qos"),
    ],
)
def test_an_account_or_qos_that_is_not_ours_is_refused(
    cluster: Cluster, tmp_path: Path, setting: str, said: str
) -> None:
    one = slurm_run(cluster, tmp_path, {}, setting).submit(check=False)
    assert said in one.said
    assert not (tmp_path / "runs").exists()


def test_preemption_by_qos_saves_and_the_run_goes_on(cluster: Cluster, tmp_path: Path) -> None:
    what = {"all": ["finish"]} | {f"1:{rank}": ["slow", "2"] for rank in range(RANKS)}
    one = slurm_run(cluster, tmp_path, what, "launch.account=research", "launch.qos=scavenger")
    one.submit().until_up()
    words = ["sbatch", "--account=research", "--qos=urgent", "--nodes=2", "--exclusive"]
    cluster.run([*words, "--output=/dev/null", "--wrap=sleep 1"])
    cluster.wait(lambda: len(one.lines) == 2)
    assert one.ends == [(1, "again", 75, "preempt"), (2, "done", 0, None)], one.words


def test_a_job_that_the_controller_has_forgotten_is_in_the_accounts(
    cluster: Cluster, tmp_path: Path
) -> None:
    one = slurm_run(cluster, tmp_path, {"all": ["wait"]}).submit().until_up()
    cluster.run(["scancel", "--signal=KILL", "--full", one.job])
    cluster.wait(lambda: one.job not in cluster.run(["squeue", "-h", "-t", "all", "-o", "%i"]))
    why = cluster.wait(lambda: _why(one.longhaul("status", str(one.run.root))))
    assert f"job {one.job} " in why
    assert "failed" in why or "cancelled" in why
    assert one.state in ("failed", "stopped")  # by how much its ranks could do; not "unknown"


def _why(said: str) -> str:
    return next((line for line in said.splitlines() if "(job " in line), "")
