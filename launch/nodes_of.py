"""What the nodes have that a plan is made for: for a job, what it asks for; else this machine."""

from __future__ import annotations

from typing import Literal

from launch.machine import device_for, num_cores
from launch.raying import preflight as raying
from launch.ssh.preflight import cores_there, device_there
from trainer.config.schema import Config
from trainer.config.sections.cloud import CloudLaunch, KubeRayLaunch, SkyLaunch
from trainer.config.sections.ray import RayLaunch
from trainer.config.sections.slurm import SlurmLaunch
from trainer.config.sections.ssh import SshLaunch


def device_of(config: Config) -> Literal["cpu", "cuda"]:
    """A login node may have no GPU."""
    launch = config.launch
    if isinstance(launch, SlurmLaunch) and config.resources.device == "auto":
        return "cpu" if launch.gpus == "none" else "cuda"
    if isinstance(launch, CloudLaunch) and config.resources.device == "auto":
        return "cpu" if isinstance(launch, SkyLaunch) and launch.gpu is None else "cuda"
    if isinstance(launch, SshLaunch) and config.resources.device == "auto":
        return device_there(config) or "cpu"
    if isinstance(launch, RayLaunch) and config.resources.device == "auto":
        return raying.device_there(config)
    return device_for(config.resources.device)


def cores_for(config: Config) -> int:
    """Cores of a node; this machine's where nothing else is known."""
    launch = config.launch
    if isinstance(launch, SlurmLaunch) and launch.cpus_per_rank:
        return launch.cpus_per_rank * config.resources.ranks_per_node
    if isinstance(launch, KubeRayLaunch):
        return launch.cpus_per_node
    if isinstance(launch, SkyLaunch) and launch.cpus is not None:
        return max(1, round(float(launch.cpus.rstrip("+"))))
    if isinstance(launch, SshLaunch):
        return cores_there(config) or num_cores()
    if isinstance(launch, RayLaunch):
        return max(1, int(launch.cpus_per_rank * config.resources.ranks_per_node))
    return num_cores()
