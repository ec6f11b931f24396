"""Which class stands behind `launch.kind`. Loaded when asked for: each brings others along."""

from __future__ import annotations

from importlib import import_module

from launch.base import Backend

_BACKENDS = {
    "local": "local.LocalBackend",
    "slurm": "slurm.SlurmBackend",
    "ssh": "ssh.SshBackend",
    "ray": "ray.RayBackend",
    "sky": "sky.SkyBackend",
    "kuberay": "kuberay.KubeRayBackend",
    "ray_up": "ray_up.RayUpBackend",
}


def backend_of(kind: str) -> Backend:
    file, name = _BACKENDS[kind].split(".")
    made: Backend = getattr(import_module(f"launch.backends.{file}"), name)()
    return made


def kinds() -> tuple[str, ...]:
    return tuple(_BACKENDS)
