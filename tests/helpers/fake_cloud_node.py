"""`python -m launch.cloud.node` with ranks that do not compute (tests/helpers/fake_worker.py)."""

from __future__ import annotations

import os
import sys

from launch.backends.ssh import SshBackend
from launch.cloud import node
from launch.cloud.carried import VARIABLE, read_carried
from launch.cloud.peers import is_first

if __name__ == "__main__":
    if not is_first(os.environ):
        sys.exit(node.main())
    backend = SshBackend(module="tests.helpers.fake_worker")
    sys.exit(node.carry_on(read_carried(os.environ.pop(VARIABLE)), backend=backend))
