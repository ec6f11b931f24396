"""The job that a plan becomes, as text; nothing is asked of Slurm."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from launch.backends.slurm import SCRIPT, SlurmBackend
from launch.nodes_of import cores_for, device_of
from launch.settings.asked import from_overrides
from launch.settings.several import members
from trainer.config.schema import Config
from trainer.plan import RunPlan
from trainer.planning import make_plan

JOBS = {
    "slurm_default.sbatch": ["launch=slurm", "resources.nodes=2", "batch.micro_batch_size=4"],
    "slurm_gres.sbatch": ["cluster=a100_gres", "resources.nodes=2", "batch.micro_batch_size=4"],
    "slurm_pyxis.sbatch": [
        "cluster=h100_pyxis",
        "resources.nodes=4",
        "resources.ranks_per_node=8",
        "batch.global_batch_size=64",
        "batch.micro_batch_size=2",
        "run.root='/runs/of 50% \"me\"'",
        "launch.mail_user=me@example.org",
        "launch.nodelist='gpu[01-08]'",
        "launch.extra=['--switches=1','--comment=two words']",
    ],
    "slurm_apptainer.sbatch": [
        "launch=slurm",
        "launch.container.kind=apptainer",
        "launch.container.image='/images/my image.sif'",
        "launch.container.mounts=['/data:/data']",
        "launch.setup_script=/home/me/env.sh",
        "launch.constraint=a100",
    ],
}


def planned(*overrides: str) -> RunPlan:
    return planned_with(from_overrides(list(overrides)))


def planned_with(config: Config) -> RunPlan:
    return make_plan(
        config,
        attempt=1,
        run_id="0123456789abcdef",
        stores=(),
        device=device_of(config),
        cores=cores_for(config),
        vocab_size_of_tokenizer=None,
    )


@pytest.mark.parametrize("name", JOBS)
def test_the_job(name: str, golden: Callable[[str, str], None]) -> None:
    plan = planned(*JOBS[name])
    folder = f"{plan.config.run.root}/{plan.config.run.name}"
    submission = SlurmBackend().render(plan, run_folder=folder)
    text = submission.files[SCRIPT]
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    golden(name, f"# $ {' '.join(submission.argv)}\n{text}")


def test_the_array_of_several_runs(golden: Callable[[str, str], None]) -> None:
    words = ["cluster=a100_gres", "resources.nodes=2", "batch.micro_batch_size=4", "launch.chain=1"]
    asked = ["launch.array_limit=2", "optimizer.learning_rate=1e-3,3e-4,1e-4"]
    found, name = members([*words, *asked])
    plans = [planned_with(one.config) for one in found]
    text = SlurmBackend().render_all(plans, name=name)
    checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    golden("slurm_array.sbatch", text)


def test_sixteen_thousand_ranks_are_rendered_in_no_time() -> None:
    wanted = ["launch=slurm", "resources.nodes=2048", "resources.ranks_per_node=8"]
    plan = planned(*wanted, "batch.global_batch_size=16384", "batch.micro_batch_size=1")
    start = time.process_time()
    submission = SlurmBackend().render(plan, run_folder="runs/large")
    assert time.process_time() - start < 5.0  # 0.1 s on a quiet core
    assert "--ntasks=16384" in submission.files[SCRIPT]
    assert len(submission.files[SCRIPT]) < 5_000
