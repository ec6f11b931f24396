"""The SkyPilot task of a plan, and the commands that hand it over. Pure.

Field names are those of SkyPilot 0.14 (`sky.Task.from_yaml`); what it does not know it refuses.
"""

from __future__ import annotations

import shlex
from pathlib import PurePath
from typing import Any

from launch.cloud.carried import VARIABLE, carried_by, carried_text
from launch.cloud.install import install_lines, sent_files
from launch.cloud.names import cluster_name, job_name
from launch.cloud.yaml_text import yaml_text
from trainer.config.sections.cloud import SkyLaunch
from trainer.errors import Exit
from trainer.plan import RunPlan

TASK = "submission/sky.yaml"  # under the attempt's folder
NODE = "launch.cloud.node"


def task_text(plan: RunPlan, launch: SkyLaunch) -> str:
    about = "A SkyPilot task; what each machine does: python -m launch.cloud.node"
    return yaml_text(task(plan, launch), about=about)


def task(plan: RunPlan, launch: SkyLaunch) -> dict[str, Any]:
    """Raises: Refused if the settings are too long to be sent."""
    found: dict[str, Any] = {
        "name": job_name(plan),
        "num_nodes": plan.config.resources.nodes,
        "resources": _resources(plan, launch),
        "envs": {VARIABLE: carried_text(carried_by(plan))},
    }
    if mounts := _mounts(launch):
        found["file_mounts"] = mounts
    if launch.volumes:
        found["volumes"] = dict(launch.volumes)
    if lines := [*launch.setup, *install_lines(launch)]:
        found["setup"] = "\n".join(["set -e", *lines]) + "\n"
    found["run"] = f"exec {shlex.join([launch.python, '-m', NODE])}\n"
    return found


def commands(plan: RunPlan, launch: SkyLaunch, *, file: str) -> tuple[str, ...]:
    """`file`: where the task will be. Values of variables are taken by `sky` itself."""
    given = [word for name in launch.environment for word in ("--secret", name)]
    if launch.managed:
        name = ("--name", job_name(plan))
        return ("sky", "jobs", "launch", "--yes", "--detach-run", *name, *given, file)
    cluster = ("--cluster", cluster_name(plan), "--down", "--retry-until-up")
    return ("sky", "launch", "--yes", "--detach-run", *cluster, *given, file)


def _resources(plan: RunPlan, launch: SkyLaunch) -> dict[str, Any]:
    found: dict[str, Any] = {
        "infra": launch.infra,
        "accelerators": f"{launch.gpu}:{plan.config.resources.ranks_per_node}",
        "cpus": launch.cpus,
        "memory": launch.memory_gib,
        "disk_size": launch.disk_gib,
        "image_id": launch.image,
        "use_spot": launch.spot,
    }
    if launch.gpu is None:
        del found["accelerators"]
    if launch.managed:
        # Ranks are restarted by the agent on the machine. SkyPilot acts when machines are lost, or
        # when the run saved and left because they were about to be.
        found["job_recovery"] = {
            "strategy": launch.recovery,
            "max_restarts_on_errors": 0,
            "recover_on_exit_codes": [int(Exit.SAVED)],
        }
    return {name: value for name, value in found.items() if value is not None}


def _mounts(launch: SkyLaunch) -> dict[str, Any]:
    found: dict[str, Any] = dict(sent_files(launch))
    for target, source in launch.mounts.items():
        found[target] = {"source": source, "mode": "MOUNT"} if is_bucket(source) else source
    if launch.run_bucket is not None:
        # Run folders are appended to and renamed in, which only the cached mode can.
        found[launch.run_root] = {"source": launch.run_bucket, "mode": "MOUNT_CACHED"}
    return found


def is_bucket(source: str) -> bool:
    return "://" in source


def local_sources(launch: SkyLaunch) -> list[PurePath]:
    """Files and folders of this machine that are sent."""
    return [PurePath(source) for source in launch.mounts.values() if not is_bucket(source)]
