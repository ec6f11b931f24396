"""Muon on ZeRO's shards: momentum stays sharded, matrices are whole only while orthogonalised.

Not DeepSpeed's own Muon (0.19.8): that orthogonalises before the norm is taken, so that clipping
scales finished updates and `grad_norm` is theirs; and it keeps whole momenta, some of them twice.
Here the gradient is clipped as everywhere, and the arithmetic is that of `trainer.optim.muon`.

Cost: one all-reduce of every matrix that more than one rank holds (all of them at stage 3), and
every holder orthogonalises it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from trainer.engine.fragments import Region
from trainer.optim.muon import Muon, orthogonalized


@dataclass(frozen=True)
class Matrix:
    """One matrix of a group, and the part of it that this rank holds, if any."""

    shape: tuple[int, ...]
    region: Region | None


class ShardedMuon(Muon):
    """Takes the groups of a `Muon`; `place` says later which matrices lie in which flat owner."""

    def place(self, matrices: Mapping[torch.Tensor, Sequence[Matrix]]) -> None:
        """Collective. `matrices`: all matrices of each owner, in an order that all ranks share."""
        self._placed: list[tuple[torch.Tensor, list[tuple[Matrix, bool]]]] = []
        for owner, those in matrices.items():
            holders = torch.tensor([float(m.region is not None) for m in those])
            holders = holders.to(owner.device)
            dist.all_reduce(holders)
            shared = (holders > 1).tolist()
            self._placed.append((owner, list(zip(those, shared, strict=True))))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Collective."""
        assert closure is None, "losses are computed by the loop"
        for group in self.param_groups:
            for p in group["params"]:
                update = self._matrices if group["use_muon"] else self._vectors
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.add_(update(p, group), alpha=-group["lr"])

    def _vectors(self, owner: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        assert owner.grad is not None
        return self._adamw(owner.grad, self.state[owner], group)

    def _matrices(self, owner: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        grad = owner.grad
        assert grad is not None
        momentum = self.state[owner]["momentum_buffer"].lerp_(grad, 1.0 - group["momentum"])
        update = torch.lerp(grad, momentum, group["momentum"])
        [matrices] = [those for placed, those in self._placed if placed is owner]
        for matrix, shared in matrices:
            if matrix.region is not None or shared:
                _orthogonalize(update, matrix, shared=shared)
        return update


def _orthogonalize(update: torch.Tensor, matrix: Matrix, *, shared: bool) -> None:
    """Replace this rank's part of one matrix by the same part of the orthogonal one."""
    rows, columns = matrix.shape
    whole = torch.zeros(rows * columns, dtype=update.dtype, device=update.device)
    region = matrix.region
    if region is not None:
        whole[region.start : region.stop] = region.of(update)
    if shared:
        dist.all_reduce(whole)
    if region is not None:
        flat = orthogonalized(whole.view(rows, columns)) * math.sqrt(max(1.0, rows / columns))
        region.of(update).copy_(flat.reshape(-1)[region.start : region.stop])
