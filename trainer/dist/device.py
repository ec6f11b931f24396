"""The device of this rank: which one, how many threads, how much memory, how fast at its best."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from trainer.capacity.peak import peak_tflops
from trainer.dist.host_memory import keep_freed_memory
from trainer.dist.world import Place
from trainer.errors import WorldError

_GEMM_SIZE = 768  # square; its three matrices fit the caches, and one product takes a few ms


@dataclass(frozen=True)
class Peak:
    """The FLOP/s that MFU is a fraction of, and where the number comes from."""

    flops: float
    source: str


def choose_device(kind: Literal["cpu", "cuda"], place: Place) -> torch.device:
    """Raises: WorldError if this node has no device for this rank."""
    if kind == "cpu":
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if place.local_rank >= found:
        raise WorldError(
            f"local rank {place.local_rank} needs CUDA device {place.local_rank}, but this node "
            f"shows {found}; start with resources.ranks_per_node={max(found, 1)} "
            "or resources.device=cpu"
        )
    return torch.device("cuda", place.local_rank)


def use_host(threads: int, *, device: Literal["cpu", "cuda"]) -> None:
    """How this process uses its node: CPU threads, and memory if it computes there."""
    torch.set_num_threads(max(threads, 1))
    if device == "cpu":
        keep_freed_memory()


def memory_meter(device: torch.device) -> Callable[[], int]:
    """Reads this rank's peak so far: allocated device memory, or the resident set on CPU."""
    if device.type == "cuda":
        return lambda: int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes there, KiB on Linux
    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measured_gemm_flops(dtype: torch.dtype, *, seconds: float = 0.2) -> float:
    """The best FLOP/s of a square matrix product on this process's CPU threads.

    The best of many: other processes can only make a product slower, never faster. One thread is
    timed by its own CPU clock, which stands still while others have the core: a peak below what
    training then reaches would show more than 100 % of it.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    a = torch.randn(_GEMM_SIZE, _GEMM_SIZE).to(dtype)
    b = torch.randn(_GEMM_SIZE, _GEMM_SIZE).to(dtype)
    best = float("inf")
    torch.mm(a, b)  # the first one packs, allocates and picks a kernel
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        started = clock()
        torch.mm(a, b)
        best = min(best, clock() - started)
    return 2 * _GEMM_SIZE**3 / best


def peak_of(device: torch.device, dtype: torch.dtype, *, given_tflops: float) -> Peak:
    """The peak of one rank: as given, else NVIDIA's table for 16-bit GPUs, else measured on CPU.

    Zero (and so no MFU) for GPUs that the table has not, and for fp32 on GPUs.
    """
    if given_tflops > 0:
        return Peak(given_tflops * 1e12, "observers.peak_tflops")
    if device.type == "cpu":
        return Peak(
            measured_gemm_flops(dtype), f"best {dtype} GEMM measured on this rank's threads"
        )
    name = torch.cuda.get_device_name(device)
    tflops = peak_tflops(name) if dtype.itemsize == 2 else None
    if tflops is None:
        return Peak(0.0, f"unknown for {name} in {dtype}; set observers.peak_tflops")
    return Peak(tflops * 1e12, f"dense 16-bit data sheet figure of {name}")
