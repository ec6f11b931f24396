"""State that waits on a disk, brought in one sub-group at a time by DeepSpeed's own swapper.

    sub-group 0    [ master | exp_avg | exp_avg_sq | gradient ]    in four page-locked buffers
    sub-group 1    in swap files; its tensors are empty
    sub-group 2    too small for a swap file (1 MiB): always in memory

A sub-group is one parameter (zero_config.py says why), so memory stays bounded by the largest.

DeepSpeed 0.19.8 reads `ZeroOptimizer._swappable_optimizer_subgroup` the same way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trainer.config.sections.training import DeepSpeedEngine
from trainer.engine.swap_folder import SwapFolder
from trainer.errors import ConfigError, Problem
from trainer.records.built_ops import needs_async_io


@contextmanager
def resident(zero: Any, sub_group: int, *, write: bool) -> Iterator[None]:
    """The sub-group's master and moments are in memory inside; `write` takes changes along.

    `zero`: DeepSpeed's stage 3 optimizer. If the body fails, the files stay as they were.
    """
    if not zero._swappable_optimizer_subgroup(sub_group):
        yield
        return
    zero._optimizer_states_and_gradient_swap_in(sub_group)
    done = False
    try:
        yield
        done = True
    finally:
        if done and write:
            zero._optimizer_states_and_gradient_swap_out(sub_group)
        else:
            zero._release_swap_buffers(sub_group)


def swap_folder(
    engine: DeepSpeedEngine, *, rank: int, device: Literal["cpu", "cuda"]
) -> SwapFolder | None:
    """This rank's own, or None if nothing is swapped.

    Raises: ConfigError if async_io is not built, or the user's folder takes no files.
    """
    if "nvme" not in (engine.offload_optimizer, engine.offload_parameters):
        return None
    needs_async_io(device)
    return SwapFolder(str(engine.nvme_path), rank=rank)


def fit_swapping(
    config: dict[str, Any], model: nn.Module, folder: Path, *, world_size: int
) -> None:
    """Tell DeepSpeed's configuration what is known only now: the rank's folder, buffers' sizes.

    A buffer for weights holds the largest share. DeepSpeed's own 1e8 elements are too few for a
    large embedding, and 2 GB in all for a small model.
    Raises: ConfigError if so much memory cannot be locked.
    """
    zero = config["zero_optimization"]
    share = -(-max(p.numel() for p in model.parameters()) // world_size)
    weight = 2 if "bf16" in config or "fp16" in config else 4
    locked = 0
    for section, held in (("offload_optimizer", 4 * 4), ("offload_param", (5 + 1) * weight)):
        if zero.get(section, {}).get("device") == "nvme":
            zero[section]["nvme_path"] = str(folder)
            locked += held * share
    if zero.get("offload_param", {}).get("device") == "nvme":
        zero["offload_param"]["buffer_size"] = share
    _try_to_lock(locked)


def _try_to_lock(size: int) -> None:
    """Lock so many bytes of memory and let go of them: where that fails, async_io aborts."""
    libc = ctypes.CDLL(None, use_errno=True)
    with mmap.mmap(-1, size) as memory:
        first = ctypes.c_char.from_buffer(memory)
        failed = libc.mlock(ctypes.byref(first), ctypes.c_size_t(size)) != 0
        reason = os.strerror(ctypes.get_errno())
        del first  # a mapping that is pointed to cannot be closed
    if failed:
        what = (
            f"swapping page-locks {size / 2**20:,.0f} MiB in each rank, and this machine refuses "
            f"({reason}); raise its limit: ulimit -l unlimited, for containers memlock=-1"
        )
        raise ConfigError([Problem("engine", what, "engine=zero3_offload_cpu")])
