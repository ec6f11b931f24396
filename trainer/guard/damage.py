"""How drills damage one number on one rank; see trainer/faultpoints.py. Nothing here runs else."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from trainer.engine.base import Engine

# The exponent's top bit: a flip there makes a small number huge, or the other way round.
_INTEGERS = {torch.float32: (torch.int32, 1 << 30), torch.bfloat16: (torch.int16, 1 << 14)}


def in_loss(loss: torch.Tensor, kind: str, element: int) -> None:
    """The value that is reported; the gradient is that of the undamaged one."""
    _damage(loss.detach(), kind, 0)


def in_gradient(engine: Engine, kind: str, element: int) -> None:
    """One element, counted over all trained parameters, of the gradient that comes next."""
    trained: list[Any] = [p for p in engine.model.parameters() if p.requires_grad]
    index, at = _place([getattr(p, "ds_numel", p.numel()) for p in trained], element)

    def damaged(gradient: torch.Tensor) -> torch.Tensor:
        hook.remove()  # this micro-step's alone
        copy = gradient.clone()
        _damage(copy, kind, at)
        return copy

    hook = trained[index].register_hook(damaged)


def in_weights(engine: Engine, kind: str, element: int) -> None:
    """One element, counted over the weights that all ranks hold, or over this rank's share."""
    held = [tensor for _, tensor in engine.replicated()]
    held = held or [fragment.values for fragment in engine.fragments()]
    index, at = _place([tensor.numel() for tensor in held], element)
    _damage(held[index], kind, at)


def _place(sizes: Sequence[int], element: int) -> tuple[int, int]:
    """Which tensor, and which element of it."""
    ends = list(accumulate(sizes))
    index = next(i for i, end in enumerate(ends) if element < end)
    return index, element - (ends[index] - sizes[index])


@torch.no_grad()
def _damage(tensor: torch.Tensor, kind: str, element: int) -> None:
    flat = tensor.view(-1)
    if kind == "flip":
        wide = flat if flat.dtype in _INTEGERS else flat.view(torch.float32)
        integer, bit = _INTEGERS[wide.dtype]
        wide.view(integer)[element] ^= bit
    else:
        flat[element] = float(kind)
