"""All-reduce over the ranks that were started, within their nodes and between them.

    srun python -m trainer.commands.allreduce --node NAME        (slurm/allreduce.sbatch)
    torchrun --nproc-per-node 2 -m trainer.commands.allreduce

Rank 0 prints a table. Bus bandwidth is that of nccl-tests: what each link must have carried.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from typing import Any

from trainer.dist.place import Place
from trainer.errors import Exit, LonghaulError

_TIMEOUT_S = 300.0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trainer.commands.allreduce")
    parser.add_argument("--node", default=socket.gethostname(), help="name of this node")
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16, 128])
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda where it is")
    given = parser.parse_args(argv)
    try:
        return measure(given.node, given.megabytes, given.device)
    except LonghaulError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code


def measure(node: str, megabytes: Sequence[int], device: Any) -> int:
    """Collective. Raises: WorldError if the ranks do not meet."""
    place = Place.from_env()
    import torch

    from trainer.dist.join import join
    from trainer.dist.world import leave
    from trainer.doctor.network import Nodes, measure_network

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    world = join(place, device=device, threads=1, timeout_s=_TIMEOUT_S, token="allreduce")
    nodes = Nodes.of(world, node)
    found = measure_network(
        world, nodes, timeout_s=_TIMEOUT_S, megabytes=megabytes, beat=lambda: None
    )
    if place.rank == 0:
        print(f"{place.world_size} ranks on {len(nodes.leaders)} nodes, {device}")
        for name, rows in found.items():
            print("\n".join(_lines(name, rows)))
    leave(world)
    return Exit.DONE


def _lines(name: str, rows: Sequence[dict[str, float]]) -> list[str]:
    return [
        f"{name:8} {row['bytes'] / 2**20:10.3f} MiB {row['seconds'] * 1e3:10.3f} ms"
        f" {row['bus_bytes_per_s'] / 1e9:8.2f} GB/s"
        for row in rows
    ]


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # what vendors do at exit may wait for a peer for ever
