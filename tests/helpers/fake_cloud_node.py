"""`python -m launch.cloud.node` with ranks that do not compute (tests/helpers/fake_worker.py)."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from launch.backends.local import LocalBackend
from launch.backends.ray import RayBackend
from launch.backends.ssh import SshBackend
from launch.base import Backend
from launch.cloud import node
from launch.cloud.carried import VARIABLE, read_carried
from launch.cloud.peers import is_first

_BACKENDS: dict[str, Callable[..., Backend]] = {
    "local": LocalBackend,
    "ray": RayBackend,
    "ssh": SshBackend,
}

if __name__ == "__main__":
    if not is_first(os.environ):
        sys.exit(node.main())
    carried = read_carried(os.environ.pop(VARIABLE))
    backend = _BACKENDS[carried.config["launch"]["kind"]](module="tests.helpers.fake_worker")
    sys.exit(node.carry_on(carried, backend=backend))
