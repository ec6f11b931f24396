"""The cluster file of `ray up` for a plan, and the commands that hand the run over. Pure.

The head only schedules. Training machines come when the job asks for their GPUs and go when they
had no work for a while. Ray runs every line through a login shell over ssh: lines are joined words,
but for those that the user wrote.
"""

from __future__ import annotations

import json
import shlex
from typing import Any

from launch.cloud.carried import VARIABLE, carried_by, carried_text
from launch.cloud.install import install_lines, sent_files
from launch.cloud.names import cluster_name, job_name
from launch.cloud.sky_task import NODE
from launch.cloud.yaml_text import yaml_text
from trainer.config.sections.cloud import RayUpLaunch
from trainer.plan import RunPlan

CLUSTER = "submission/cluster.yaml"  # under the attempt's folder
_TOKEN = "~/.ray/auth_token"  # where Ray looks for it
_ENVIRONMENT = "~/.longhaul-environment"
_DASHBOARD = "http://127.0.0.1:8265"  # as the head sees it
_MARGIN_S = 15  # from the end of the ranks' grace to that of the job


def cluster_text(plan: RunPlan, launch: RayUpLaunch) -> str:
    about = "A cluster file of Ray: ray up CLUSTER.yaml, ray down CLUSTER.yaml"
    return yaml_text(cluster(plan, launch), about=about)


def cluster(plan: RunPlan, launch: RayUpLaunch) -> dict[str, Any]:
    nodes = plan.config.resources.nodes
    head_node, worker_node = _machines(plan, launch)
    gives = {"GPU": plan.config.resources.ranks_per_node} if plan.device == "cuda" else {}
    return {
        "cluster_name": cluster_name(plan),
        "max_workers": nodes,
        "idle_timeout_minutes": launch.idle_minutes,
        "provider": _provider(launch),
        "auth": _auth(launch),
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": head_node},
            "ranks": {
                # One machine comes when the job asks for it; for several the head waits.
                "min_workers": nodes if nodes > 1 else 0,
                "max_workers": nodes,
                "resources": gives,
                "node_config": worker_node,
            },
        },
        "head_node_type": "head",
        "file_mounts": _files(launch),
        "setup_commands": _setup(launch),
        "head_setup_commands": _head_setup(launch),
        "head_start_ray_commands": _start(launch, _HEAD_WORDS),
        "worker_start_ray_commands": _start(launch, ["--address=$RAY_HEAD_IP:6379"]),
    }


_HEAD_WORDS = ["--head", "--port=6379", "--autoscaling-config=~/ray_bootstrap_config.yaml"]


def commands(plan: RunPlan, launch: RayUpLaunch, *, file: str) -> tuple[tuple[str, ...], ...]:
    """`file`: where the cluster file will be."""
    up = ("ray", "up", "--yes", "--no-config-cache", file)
    return (up, on_head(file, job_words(launch, "submit", *_submission(plan, launch))))


def on_head(file: str, words: list[str]) -> tuple[str, ...]:
    """A command for the head's shell: ours as one word, theirs by shlex."""
    return ("ray", "exec", "--no-config-cache", file, shlex.join(words))


def job_words(launch: RayUpLaunch, verb: str, *more: str) -> list[str]:
    """A verb of `ray job` on the head, through the interpreter that has Ray there."""
    ray = [launch.python, "-m", "ray.scripts.scripts", "job", verb, "--address", _DASHBOARD]
    return ["env", "RAY_AUTH_MODE=token", *ray, *more]


def _submission(plan: RunPlan, launch: RayUpLaunch) -> list[str]:
    carried = json.dumps({"env_vars": {VARIABLE: carried_text(carried_by(plan))}})
    words = ["--submission-id", job_name(plan), "--no-wait", "--runtime-env-json", carried]
    if plan.config.resources.nodes == 1:
        kind = "gpus" if plan.device == "cuda" else "cpus"
        words += [f"--entrypoint-num-{kind}", str(plan.config.resources.ranks_per_node)]
    return [*words, "--", launch.python, "-m", NODE]


def _start(launch: RayUpLaunch, words: list[str]) -> list[str]:
    """The token's place and the variables of the ranks, for all that Ray starts on the machine."""
    ray = f"{shlex.quote(launch.python)} -m ray.scripts.scripts"
    given = f"set -a; . {_ENVIRONMENT}; set +a; " if launch.environment_file is not None else ""
    env = f"RAY_AUTH_MODE=token RAY_JOB_STOP_WAIT_TIME_S={round(launch.grace_s) + _MARGIN_S}"
    start = " ".join([ray, "start", *words, "--disable-usage-stats"])
    return [f"{ray} stop", f"{given}ulimit -n 65536; {env} {start}"]


def _setup(launch: RayUpLaunch) -> list[str]:
    private = f"chmod 600 {_TOKEN}"
    if launch.environment_file is not None:
        private += f" {_ENVIRONMENT}"
    ray = f"ray[default]=={launch.ray_version}"
    return [private, *launch.setup, *install_lines(launch, ray)]


def _head_setup(launch: RayUpLaunch) -> list[str]:
    """What the head asks the cloud with, for the interpreter that does. Unless it is said, Ray
    installs it with whatever `pip` comes first on the PATH."""
    if launch.package is None:
        return []
    asks = {"aws": "boto3>=1.4.8", "gcp": "google-api-python-client==1.7.8"}  # as Ray's defaults
    return [shlex.join([launch.python, "-m", "pip", "install", "--quiet", asks[launch.provider]])]


def _files(launch: RayUpLaunch) -> dict[str, str]:
    found = {_TOKEN: launch.token_file, **sent_files(launch)}
    if launch.environment_file is not None:
        found[_ENVIRONMENT] = launch.environment_file
    return found


def _provider(launch: RayUpLaunch) -> dict[str, Any]:
    found: dict[str, Any] = {"type": launch.provider, "region": launch.region}
    found["availability_zone"] = launch.zone
    if launch.provider == "gcp":
        found["project_id"] = launch.project
    else:
        found["cache_stopped_nodes"] = False  # a machine that is not used is not kept
    return {name: value for name, value in found.items() if value is not None}


def _auth(launch: RayUpLaunch) -> dict[str, Any]:
    found = {
        "ssh_user": launch.ssh_user,
        "ssh_private_key": launch.identity_file,
        "ssh_proxy_command": launch.ssh_proxy_command,
    }
    return {name: value for name, value in found.items() if value is not None}


def _machines(plan: RunPlan, launch: RayUpLaunch) -> tuple[dict[str, Any], dict[str, Any]]:
    """(head, one that trains), in the words of the provider."""
    if launch.provider == "gcp":
        ranks = plan.config.resources.ranks_per_node
        return _gcp(launch, launch.head_type), _gcp_ranks(launch, ranks)
    return _aws(launch, launch.head_type), _aws_ranks(launch)


def _aws(launch: RayUpLaunch, kind: str | None) -> dict[str, Any]:
    disk = {"VolumeSize": launch.disk_gib, "VolumeType": "gp3"}
    found: dict[str, Any] = {
        "InstanceType": kind,
        "ImageId": launch.image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
    }
    if launch.key_name is not None:
        found["KeyName"] = launch.key_name
    return found


def _aws_ranks(launch: RayUpLaunch) -> dict[str, Any]:
    found = _aws(launch, launch.worker_type)
    if launch.spot:
        found["InstanceMarketOptions"] = {"MarketType": "spot"}
    if launch.worker_profile is not None:
        found["IamInstanceProfile"] = {"Arn": launch.worker_profile}
    return found


def _gcp(launch: RayUpLaunch, kind: str | None) -> dict[str, Any]:
    disk = {"diskSizeGb": launch.disk_gib, "sourceImage": launch.image}
    first = {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
    return {"machineType": kind, "disks": [first]}


def _gcp_ranks(launch: RayUpLaunch, ranks: int) -> dict[str, Any]:
    """`scheduling` is a list, as Ray's own defaults have it."""
    found = _gcp(launch, launch.worker_type)
    found["scheduling"] = [{"preemptible": True}] if launch.spot else []
    # Machines with GPUs cannot be moved while they run.
    found["scheduling"].append({"onHostMaintenance": "TERMINATE"})
    if launch.gpu is not None:
        found["guestAccelerators"] = [{"acceleratorType": launch.gpu, "acceleratorCount": ranks}]
    return found
