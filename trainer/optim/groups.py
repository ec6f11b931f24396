"""Which parameters decay: a pure rule on names and shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Group:
    """Parameters that share settings; `lr_scale` multiplies the engine's learning rate."""

    name: str
    parameters: tuple[tuple[str, torch.nn.Parameter], ...]
    weight_decay: float
    lr_scale: float = 1.0


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The logical shape; under ZeRO-3 `parameter.shape` is that of an empty tensor."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def decays(shape: Sequence[int]) -> bool:
    """Matrices decay, vectors do not: biases and norm weights are vectors.

    Embeddings and the head are matrices and decay, as in GPT-2, GPT-NeoX, Llama and nanoGPT.
    """
    return len(shape) >= 2


def decay_groups(
    named: Iterable[tuple[str, torch.nn.Parameter]], *, weight_decay: float
) -> list[Group]:
    """At most two groups, "decay" and "no_decay", in the model's order; empty ones are left out.

    Frozen parameters belong to no group.
    """
    trained = [(n, p) for n, p in named if p.requires_grad]
    groups = [
        Group("decay", tuple((n, p) for n, p in trained if decays(whole_shape(p))), weight_decay),
        Group("no_decay", tuple((n, p) for n, p in trained if not decays(whole_shape(p))), 0.0),
    ]
    return [g for g in groups if g.parameters]
