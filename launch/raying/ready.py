"""Waits until so many nodes of the cluster at RAY_ADDRESS live.

python -m launch.raying.ready NODES [SECONDS]
"""

from __future__ import annotations

import os
import sys
import time

from launch.raying.cluster import Cluster
from trainer.errors import Exit

_TURN_S = 1.0


def main() -> int:
    wanted = int(sys.argv[1])
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 180.0
    deadline = time.monotonic() + seconds
    cluster = Cluster.at(os.environ["RAY_ADDRESS"])
    while len(found := cluster.nodes()) < wanted:
        if time.monotonic() > deadline:
            names = ", ".join(node.host for node in found)
            print(
                f"longhaul: {len(found)} of {wanted} Ray nodes after {seconds:.0f} s: {names}",
                file=sys.stderr,
            )
            return Exit.FAILED
        time.sleep(_TURN_S)
    cluster.close()
    return Exit.DONE


if __name__ == "__main__":
    sys.exit(main())
