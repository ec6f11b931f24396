"""What `launch=ray` would run, and the job that makes a Ray cluster of an allocation."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.backends.ray import RayBackend
from launch.nodes_of import cores_for
from launch.raying.cluster import bundle_of
from launch.raying.jobs import job_command
from launch.settings.asked import from_overrides
from trainer.config.sections.ray import RayLaunch
from trainer.planning import make_plan

_ROOT = Path(__file__).parents[2]
RUNS = {
    "ray_driver.txt": ["launch=ray", "launch.address=head:6379", "launch.cpus_per_rank=6"],
    "ray_job.txt": [
        "launch=ray",
        "launch.submit=job",
        "launch.dashboard=http://head:8265",
        "launch.workdir=/shared/my project",
        "launch.python=/shared/venv/bin/python",
        "launch.per_node={fast_disk: 1}",
        "run.root='/runs/of 50% \"me\"'",
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_what_would_be_run(name: str, golden: Callable[[str, str], None]) -> None:
    shared = [
        "batch.micro_batch_size=2",
        "resources.nodes=2",
        "resources.min_nodes=1",
        "resources.ranks_per_node=4",
    ]
    config = from_overrides([*RUNS[name], *shared, "resources.device=cuda"])
    plan = make_plan(
        config,
        attempt=1,
        run_id="0123456789abcdef",
        stores=(),
        device="cuda",
        cores=cores_for(config),
        vocab_size_of_tokenizer=None,
    )
    launch = plan.config.launch
    assert isinstance(launch, RayLaunch)
    submission = RayBackend().render(plan, run_folder=f"{config.run.root}/{config.run.name}")
    lines = [f"# a bundle a node: {json.dumps(bundle_of(launch, ranks=4, device='cuda'))}"]
    if launch.submit == "job":
        lines.append(job_command(submission.argv, launch, workdir="/not/this"))
    else:
        lines.append(json.dumps(submission.argv))
    lines += [f"# {path}\n{text}" for path, text in submission.files.items()]
    golden(name, "\n".join(lines) + "\n")


def test_the_job_of_an_allocation_is_a_script() -> None:
    script = (_ROOT / "slurm/ray.sbatch").read_text(encoding="utf-8")
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert script.isascii()
    assert "ray stop" not in "\n".join(x for x in script.splitlines() if not x.startswith("#"))
