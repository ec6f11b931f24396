"""`longhaul doctor launch=slurm` on a real Slurm: two machines, real ranks, one machine unfit."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from trainer.errors import Exit

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        small = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"]
        made.lab.node("node2").run(small)
        yield made


def test_the_unfit_machine_of_two_is_named_and_left_out(cluster: Cluster, tmp_path: Path) -> None:
    """The default batch is too small for four ranks, which is no reason not to look at them."""
    settings = ["launch=slurm", "launch.gpus=none", "resources.nodes=2", f"run.root={tmp_path}"]
    argv = [sys.executable, "-m", "launch", "doctor", *settings, "--json"]
    process = cluster.popen(argv, stdout=-1, stderr=-1, text=True)
    out, err = process.communicate(timeout=220)
    assert process.returncode == Exit.STOP, err
    said = json.loads(out)
    assert said["exclude"] == ["node2"]
    wrong = {(one["name"], one["node"]) for one in said["findings"] if one["verdict"] == "problem"}
    assert ("shared memory", "node2") in wrong
    assert {name for name, _ in wrong} <= {"shared memory", "compute"}, wrong
    names = {one["name"] for one in said["findings"]}
    assert {"settings", "clock", "all-reduce across nodes", "all-reduce within a node"} <= names
    assert {"Slurm", "Slurm KillWait", "Slurm GraceTime", "Slurm JobRequeue"} <= names
    assert [one["node"] for one in said["measured"]["ranks"]] == ["node1"] * 2 + ["node2"] * 2
    assert not any(tmp_path.iterdir()), "the job is over, and its folder is gone"
