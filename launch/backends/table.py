"""Which class stands behind `launch.kind`."""

from __future__ import annotations

from collections.abc import Callable

from launch.backends.local import LocalBackend
from launch.backends.slurm import SlurmBackend
from launch.base import Backend

_BACKENDS: dict[str, Callable[[], Backend]] = {"local": LocalBackend, "slurm": SlurmBackend}


def backend_of(kind: str) -> Backend:
    return _BACKENDS[kind]()
