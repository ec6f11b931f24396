"""State that waits on a disk, brought in one sub-group at a time by DeepSpeed's own swapper.

    sub-group 0    [ master | exp_avg | exp_avg_sq | gradient ]    in four page-locked buffers
    sub-group 1    in swap files; its tensors are empty
    sub-group 2    too small for a swap file (1 MiB): always in memory

A sub-group is one parameter (zero_config.py says why), so memory stays bounded by the largest.

DeepSpeed 0.19.8 reads `ZeroOptimizer._swappable_optimizer_subgroup` the same way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


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


def fit_buffers(config: dict[str, Any], model: nn.Module, *, world_size: int) -> None:
    """Buffers for swapped weights: as large as the largest share, known only with the model.

    DeepSpeed's own 1e8 elements are too few for a large embedding, and 2 GB for a small model.
    """
    section = config["zero_optimization"].get("offload_param", {})
    if section.get("device") == "nvme":
        largest = max(p.numel() for p in model.parameters())
        section["buffer_size"] = -(-largest // world_size)
