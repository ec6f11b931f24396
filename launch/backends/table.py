"""Which class stands behind `launch.kind`."""

from __future__ import annotations

from collections.abc import Callable

from launch.backends.kuberay import KubeRayBackend
from launch.backends.local import LocalBackend
from launch.backends.ray import RayBackend
from launch.backends.ray_up import RayUpBackend
from launch.backends.sky import SkyBackend
from launch.backends.slurm import SlurmBackend
from launch.backends.ssh import SshBackend
from launch.base import Backend

_BACKENDS: dict[str, Callable[[], Backend]] = {
    "local": LocalBackend,
    "slurm": SlurmBackend,
    "ssh": SshBackend,
    "ray": RayBackend,
    "sky": SkyBackend,
    "kuberay": KubeRayBackend,
    "ray_up": RayUpBackend,
}


def backend_of(kind: str) -> Backend:
    return _BACKENDS[kind]()


def kinds() -> tuple[str, ...]:
    return tuple(_BACKENDS)
