"""What SkyPilot, KubeRay and `ray up` are told, but for the settings that are sent along."""

from __future__ import annotations

import shlex
from collections.abc import Callable

import pytest

from launch.backends.table import backend_of
from launch.base import Submission
from launch.node.ranks_spec import RANKS_FILE
from tests.helpers.cloud import KUBERAY, RAY_UP, SKY, plan_for, without_settings
from tests.helpers.configs import config

CASES = {
    "sky_managed_spot": (*SKY, "launch.environment=[WANDB_API_KEY]"),
    "sky_cluster": (
        *SKY,
        "launch.managed=false",
        "launch.spot=false",
        "launch.image=null",
        "launch.package=dist/longhaul-0.1.0-py3-none-any.whl",
        "launch.setup=[sudo apt-get install -y libaio1]",
        "launch.cpus=16+",
        "launch.run_bucket=s3://bucket/runs",
        "launch.mounts={/data: s3://bucket/corpus, /vocabulary: ./tokenizer}",
        "launch.volumes={/mnt/scratch: fast}",
    ),
    "kuberay_gpu": (
        *KUBERAY,
        "launch.environment=[WANDB_API_KEY]",
        "launch.variables_from=longhaul",
        "launch.node_selector={cloud.google.com/gke-accelerator: nvidia-h100-80gb}",
        "launch.queue=gpus",
        "launch.time_limit_h=12",
    ),
    "kuberay_two_machines": (*KUBERAY, "resources.nodes=2", "batch.micro_batch_size=1"),
    "ray_up_aws_spot": (
        *RAY_UP,
        "launch.package=dist/longhaul-0.1.0-py3-none-any.whl",
        "launch.environment_file='~/.longhaul/keys'",
        "launch.worker_profile=arn:aws:iam::123456789012:instance-profile/trainer",
    ),
    "ray_up_gcp": (
        *RAY_UP,
        "launch.provider=gcp",
        "launch.region=us-central1",
        "launch.zone=us-central1-a",
        "launch.project=my-project",
        "launch.head_type=n2-standard-2",
        "launch.worker_type=n1-standard-32",
        "launch.gpu=nvidia-tesla-t4",
        "launch.image=projects/my-project/global/images/trainer",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_handed_over(name: str, golden: Callable[[str, str], None]) -> None:
    plan = plan_for(config(*CASES[name]))
    submission = backend_of(plan.config.launch.kind).render(plan, run_folder="runs/first-run")
    golden(f"cloud_{name}.txt", without_settings(_shown(submission), plan))


def _shown(submission: Submission) -> str:
    commands = [shlex.join(argv) for argv in (submission.argv, *submission.then)]
    files = [f"--- {n}\n{text}" for n, text in submission.files.items() if n != RANKS_FILE]
    return "\n".join([*commands, *files])
