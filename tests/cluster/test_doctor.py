"""`longhaul doctor` on real machines: through Slurm and through ssh, one of them unfit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.nodes import TIMED, Lab, environment, machines, skip
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from trainer.errors import Exit

pytestmark = pytest.mark.cluster

_DOCTOR = [sys.executable, "-m", "launch", "doctor"]
_SLOW = "tc qdisc add dev eth0 root tbf rate 160mbit burst 64kbit latency 400ms"
_SMALL = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", "/dev/shm"]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path / "slurm", nodes=2) as made:
        made.lab.node("node2").run(_SMALL)
        yield made


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    with machines(tmp_path / "lab", 3) as made:
        made.node("node2").run(_SMALL)
        if "planted" not in made.node("node3").sh(f"{_SLOW} && echo planted", check=False):
            skip("this kernel cannot slow a link down (tc tbf)")
        yield made


def test_slurm_the_unfit_machine_of_two_is_named_and_left_out(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The default batch is too small for four ranks, which is no reason not to look at them."""
    root = tmp_path / "runs"
    settings = ["launch=slurm", "launch.gpus=none", "resources.nodes=2", f"run.root={root}"]
    process = cluster.popen([*_DOCTOR, *settings, "--json"], stdout=-1, stderr=-1, text=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode == Exit.STOP, err
    said = json.loads(out)
    assert "node2" in said["exclude"]  # node1 shares its cores with whatever runs here
    wrong = {(one["name"], one["node"]) for one in said["findings"] if one["verdict"] == "problem"}
    assert [node for name, node in wrong if name == "shared memory"] == ["node2"]
    assert {name for name, _ in wrong} <= {"shared memory", *TIMED}, wrong
    names = {one["name"] for one in said["findings"]}
    assert {"settings", "clock", "all-reduce across nodes", "all-reduce within a node"} <= names
    assert {"Slurm", "Slurm KillWait", "Slurm GraceTime", "Slurm JobRequeue"} <= names
    assert [one["node"] for one in said["measured"]["ranks"]] == ["node1"] * 2 + ["node2"] * 2
    assert not root.exists(), "the job is over, and its folder is gone"


def test_ssh_prints_the_machines_to_leave_out_and_nothing_else(lab: Lab, tmp_path: Path) -> None:
    """One has little shared memory; another's link carries a tenth, which only pairs can tell."""
    settings = [
        "launch=ssh",
        "launch.hosts=[node1,node2,node3]",
        f"launch.identity_file={lab.identity}",
        f"launch.options=['UserKnownHostsFile={lab.known_hosts}']",
        "launch.environment=[PYTHONPATH,OMP_NUM_THREADS]",
        "resources.nodes=3",
        "resources.ranks_per_node=1",
        f"run.root={tmp_path / 'runs'}",
    ]
    argv = lab.login.words([*_DOCTOR, *settings, "--pairs", "--exclude"])
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == Exit.STOP, done.stderr
    # Machines of one machine share its cores: node1 may be called slow at computing.
    assert done.stdout.strip() in ("node2,node3", "node1,node2,node3"), done.stderr
