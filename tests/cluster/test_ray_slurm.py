"""slurm/ray.sbatch on a real Slurm: a Ray cluster for as long as a command lasts, and no longer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.nodes import REPOSITORY
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles

pytestmark = pytest.mark.cluster

_FINISH = {str(rank): ["finish"] for rank in range(4)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), nodes=2) as made:
        yield made


def test_a_run_on_the_ray_of_an_allocation(cluster: Cluster, tmp_path: Path) -> None:
    """The run ends well, then the command with a code of its own, which is the job's."""
    words = [sys.executable, "-m", "tests.helpers.fake_ranks", "train", "launch=ray"]
    words += ["launch.foreground=true", "launch.grace_s=20", "resources.device=cpu"]
    words += ["resources.nodes=2", "resources.ranks_per_node=2", "batch.micro_batch_size=4"]
    words += ["launch.environment=[FAKE_BEHAVIOUR,PYTHONPATH]"]
    words += [f"data.store_root={tmp_path}/stores", f"run.root={tmp_path}/runs", "run.name=one"]
    env = cluster.env(
        {
            "FAKE_BEHAVIOUR": json.dumps(_FINISH),
            "LONGHAUL_PYTHON": sys.executable,
            "LONGHAUL_RAY_TMP": "/run",  # these machines share /tmp
        }
    )
    script = [str(REPOSITORY / "slurm/ray.sbatch"), "sh", "-c", '"$@"; echo code $?; exit 7', "sh"]
    options = ["--parsable", "-N2", "--cpus-per-task=4", f"--chdir={tmp_path}"]
    options += [f"--output={tmp_path}/out"]
    job = cluster.login.run(["sbatch", *options, *script, *words], env=env).strip()
    state = cluster.until_state(job, "COMPLETED", "FAILED", "CANCELLED", seconds=400)
    said = (tmp_path / "out").read_text()
    details = cluster.run(["scontrol", "show", "job", job])
    assert (state, "ExitCode=7:0" in details) == ("FAILED", True), said
    assert "code 0" in said
    files = RunFiles(tmp_path / "runs/one").attempt(1)
    assert read_json(files.ended)["codes"] == dict.fromkeys("0123", 0)
    for node in cluster.lab.nodes:
        left = node.sh("ps -eo args | grep -E '[r]aylet|[g]cs_server|[l]aunch.agent' || true")
        assert left == ""
        assert node.sh("ls /run | grep longhaul || true") == ""
