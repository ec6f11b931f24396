"""Which rank computes slower than the others: equal matrix products on all of them at once."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import torch

from trainer.dist.world import World

_WINDOW_S = 0.25
_WINDOWS = 3  # the best counts: a moment's disturbance slows one of them
_SUSPICIOUS = 1.5  # times slower than the median: measured once more before it is said
_SIZE = {"cpu": 384, "cuda": 4096}


def measure_compute(world: World) -> dict[str, Any]:
    """This rank's products a second, and the part of the time it was given a core. Collective."""
    product = _product(world.device)
    product()
    rate, share = _best(world, product)
    if _is_anybody_slow(world, rate):
        again, share_again = _best(world, product)
        rate, share = max((rate, share), (again, share_again))
    return {"products_per_s": round(rate, 2), "core_share": round(share, 3)}


def _best(world: World, product: Any) -> tuple[float, float]:
    found = []
    for _ in range(_WINDOWS):
        world.max([0.0])  # all start together: neighbours disturb each other as they will later
        found.append(_window(product))
    return max(found)


def _window(product: Any) -> tuple[float, float]:
    """(products a second, CPU seconds a second of the main thread)."""
    started, cpu, count = time.perf_counter(), time.thread_time(), 0
    while time.perf_counter() - started < _WINDOW_S:
        product()
        count += 1
    seconds = time.perf_counter() - started
    return count / seconds, (time.thread_time() - cpu) / seconds


def _is_anybody_slow(world: World, rate: float) -> bool:
    row = [0.0] * world.place.world_size
    row[world.place.rank] = rate
    rates = world.sum(row)
    return min(rates) * _SUSPICIOUS < median(rates)


def _product(device: torch.device) -> Any:
    size = _SIZE[device.type]
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)

    def product() -> None:
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return product
