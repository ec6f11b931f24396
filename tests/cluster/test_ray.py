"""Runs on a real Ray cluster: a head and two nodes, real agents, ranks without torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.ray_cluster import RayCluster, RayRun, ray_cluster
from trainer.records.json_file import read_json

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

FINISH = {str(rank): ["finish"] for rank in range(4)}
WAIT = {str(rank): ["wait"] for rank in range(4)}
SECRET = "longhaul-sentinel-never-to-be-written"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), 2) as made:
        yield made


def test_a_run_on_two_nodes(cluster: RayCluster, tmp_path: Path) -> None:
    one = RayRun(
        cluster.lab,
        tmp_path,
        "one",
        behaviours=FINISH,
        env={"WANDB_API_KEY": SECRET},
        passed=("WANDB_*",),
        cluster=cluster,
    )
    said = one.train()
    assert f"one: attempt 1 begins on the Ray cluster at {cluster.address}" in said
    one.until_over()
    assert read_json(one.run.attempt(1).ended)["codes"] == dict.fromkeys("0123", 0), one.log()
    assert "finished" in one.type("status", str(one.run.root)).stdout
    ours = [path for path in one.folder.rglob("*") if path.is_file()]
    hidden = (SECRET.encode(), cluster.token.encode())
    assert not [p for p in ours for secret in hidden if secret in p.read_bytes()]
