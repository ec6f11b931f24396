"""How fast ranks reach each other, and how far their clocks are apart: collectives with a watch.

Units: bytes, seconds. NCCL goes through the same calls as gloo; it was not run on GPUs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PINGS = 8


def subgroup(ranks: Sequence[int], *, timeout_s: float) -> Any:
    """A group of `ranks` alone. Collective among them only: all nodes make theirs at once."""
    timeout = timedelta(seconds=timeout_s)
    return dist.new_group(list(ranks), timeout=timeout, use_local_synchronization=True)


def all_reduce_seconds(
    num_bytes: int, *, device: torch.device, group: Any = None, repeats: int = 5
) -> list[float]:
    """Of each repeat, sorted. Collective in `group` (None: the whole world)."""
    tensor = torch.ones(max(1, num_bytes // 4), dtype=torch.float32, device=device)
    dist.all_reduce(tensor, group=group)  # connections and buffers are made by the first one
    found = []
    for _ in range(repeats):
        tensor.fill_(1.0)
        _finish(device)
        started = time.perf_counter()
        dist.all_reduce(tensor, group=group)
        _finish(device)
        found.append(time.perf_counter() - started)
    return sorted(found)


def exchange_seconds(peer: int, num_bytes: int, *, device: torch.device, repeats: int = 3) -> float:
    """The best time in which this rank and `peer` exchange `num_bytes`. Collective of two."""
    mine = torch.ones(max(1, num_bytes // 4), dtype=torch.float32, device=device)
    theirs = torch.empty_like(mine)
    best = float("inf")
    for _ in range(repeats + 1):  # the first connects
        _finish(device)
        started = time.perf_counter()
        both = [dist.P2POp(dist.isend, mine, peer), dist.P2POp(dist.irecv, theirs, peer)]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        _finish(device)
        best = min(best, time.perf_counter() - started)
    return best


def clock_offsets(
    leaders: Sequence[int], *, rank: int, clock: Callable[[], float] = time.time
) -> list[dict[str, float]]:
    """Of each leader's wall clock against rank 0's, on rank 0; empty elsewhere. Leaders call it.

    Of several pings the one with the shortest way: its answer is off by half of that at most.
    """
    if rank != 0:
        for _ in range(_PINGS):
            tick = torch.zeros(1, dtype=torch.float64)
            dist.recv(tick, 0)
            tick[0] = clock()
            dist.send(tick, 0)
        return []
    found = []
    for peer in leaders[1:]:
        offset, way = min((_ping(peer, clock) for _ in range(_PINGS)), key=lambda one: one[1])
        found.append({"rank": float(peer), "offset_s": offset, "round_trip_s": way})
    return found


def _ping(peer: int, clock: Callable[[], float]) -> tuple[float, float]:
    """(offset, round trip)."""
    tick = torch.zeros(1, dtype=torch.float64)
    sent, started = clock(), time.perf_counter()
    dist.send(tick, peer)
    dist.recv(tick, peer)
    way = time.perf_counter() - started
    return float(tick.item()) - (sent + way / 2), way


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
