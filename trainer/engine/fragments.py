"""Who owns what: where this rank's piece of every trained parameter lives, per engine and stage.

No vendor is imported here; DeepSpeed's optimizers are read by attribute. They are private, so the
contract suite compares what is read here across all stages and worlds, and with `plain`.

    parameter   [=========================================]   flat, `shape` elements
    this rank              [=============]                    elements [start, stop)
    owner       [ .. other parameters .. | here | padding ]   fp32, key of the optimizer's state
                                         ^ offset
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.engine.base import FragmentSource, HeldFragment, read_all
from trainer.optim.muon import Muon
from trainer.records.fragment import MASTER, Fragment

Named = Sequence[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Region:
    """Elements [start, stop) of one parameter lie at `offset` of the flattened `owner`."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int
    owner: torch.Tensor  # fp32, contiguous; the optimizer's state hangs on it
    offset: int

    def of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The region's part of `owner` or of one of its moments: a live 1-D view."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.stop - self.start)


def whole(masters: Named) -> list[Region]:
    """Every rank holds everything: `plain`, and stage 0 when it loads."""
    return [Region(n, tuple(p.shape), 0, p.numel(), p, 0) for n, p in masters]


def balanced(masters: Named, *, rank: int, world_size: int) -> list[Region]:
    """Everything is everywhere, so each rank saves one of `world_size` equal shares.

    The shares cut the concatenation of all parameters, so that they differ by one element at most.
    """
    total = sum(p.numel() for _, p in masters)
    first, last = total * rank // world_size, total * (rank + 1) // world_size
    regions, at = [], 0
    for name, p in masters:
        start, stop = max(first - at, 0), min(last - at, p.numel())
        if start < stop:
            regions.append(Region(name, tuple(p.shape), start, stop, p, start))
        at += p.numel()
    return regions


def of_stage_1_or_2(trained: Named, optimizer: Any) -> list[Region]:
    """Each rank owns one contiguous piece of each flattened parameter group.

    `_hp_mapping` is None on a parameter of which this rank owns nothing (DeepSpeed 0.19).
    """
    flats = getattr(optimizer, "single_partition_of_fp32_groups", None)
    if flats is None:  # stage 1 with bf16 weights and fp32 accumulation: BF16_Optimizer
        flats = optimizer.fp32_groups_flat_partition
    regions = []
    for name, p in trained:
        mapping: Any = getattr(p, "_hp_mapping", None)
        if mapping is None:
            continue
        start = int(mapping.lp_fragment_address.start)
        length = int(mapping.hp_fragment_address.numel)  # of the parameter: padding is not counted
        owner = flats[mapping.param_group_index]
        offset = int(mapping.hp_fragment_address.start)
        regions.append(Region(name, tuple(p.shape), start, start + length, owner, offset))
    return regions


def of_stage_3(trained: Named, optimizer: Any) -> list[Region]:
    """Each rank owns the same share of every parameter; the last ranks' shares are padded.

    `grad_position[id]` is (sub-group, offset, share with padding) (DeepSpeed 0.19).
    """
    regions = []
    for name, parameter in trained:
        p: Any = parameter
        group, offset, share = optimizer.grad_position[optimizer.get_param_id(p)]
        start = min(optimizer._get_param_partition_rank(p) * share, p.ds_numel)
        stop = min(start + share, p.ds_numel)
        if start < stop:
            owner = optimizer.fp32_partitioned_groups_flat[group]
            regions.append(Region(name, tuple(p.ds_shape), start, stop, owner, int(offset)))
    return regions


def held(regions: Iterable[Region], optimizer: torch.optim.Optimizer) -> Iterator[HeldFragment]:
    for region in regions:
        for kind, tensor in _kinds(region.owner, optimizer):
            yield HeldFragment(_fragment(region, kind), region.of(tensor))


@torch.no_grad()
def fill(
    regions: Iterable[Region],
    optimizer: torch.optim.Optimizer,
    source: FragmentSource,
    *,
    step: int,
) -> None:
    """Read straight into masters and moments; `step` updates were done so far."""
    found = list(regions)
    wanted = [
        (_fragment(region, kind), region.of(tensor))
        for region in found
        for kind, tensor in _kinds(region.owner, optimizer)
    ]
    read_all(source, wanted)
    for region in found:
        count = optimizer.state[region.owner].get("step")
        if torch.is_tensor(count):
            count.fill_(float(step))
        elif count is not None:
            optimizer.state[region.owner]["step"] = step


def create_moments(
    optimizer: torch.optim.Optimizer, owned: Iterable[tuple[torch.Tensor, dict[str, Any]]]
) -> None:
    """Moments exist before the first step, all zero, so that every save has the same tensors.

    `owned`: each owner with its parameter group.
    Raises: TypeError for an optimizer whose moments are not known here.
    """
    for owner, group in owned:
        state = optimizer.state[owner]
        for kind in moment_names(optimizer, group):
            state.setdefault(kind, torch.zeros_like(owner, requires_grad=False))
        if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
            # torch 2.13: a fused kernel counts on the device, the others on the host.
            on_device = group.get("fused") or group.get("capturable")
            device = owner.device if on_device else torch.device("cpu")
            state.setdefault("step", torch.zeros((), dtype=torch.float32, device=device))
        if isinstance(optimizer, Muon) and not group["use_muon"]:
            state.setdefault("step", 0)


def moment_names(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> tuple[str, ...]:
    """What the optimizer keeps beside each parameter of the group. Raises: TypeError."""
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        extra = ("max_exp_avg_sq",) if group["amsgrad"] else ()
        return ("exp_avg", "exp_avg_sq", *extra)
    if isinstance(optimizer, Muon):
        return optimizer.moment_names(group)
    if isinstance(optimizer, torch.optim.SGD):
        # A zero buffer gives the first update of a missing one: momentum * 0 + gradient.
        return ("momentum_buffer",) if group["momentum"] else ()
    raise TypeError(
        f"the moments of {type(optimizer).__name__} are not known to trainer/engine/fragments.py"
    )


def _kinds(
    owner: torch.Tensor, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[str, torch.Tensor]]:
    yield MASTER, owner
    for kind, value in sorted(optimizer.state[owner].items()):
        if kind != "step" and torch.is_tensor(value) and value.shape == owner.shape:
            yield kind, value


def _fragment(region: Region, kind: str) -> Fragment:
    if not 0 <= region.start <= region.stop <= math.prod(region.shape):
        raise AssertionError(f"{region.name}: [{region.start}, {region.stop}) of {region.shape}")
    return Fragment(region.name, kind, region.shape, region.start, region.stop)
