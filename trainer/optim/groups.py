"""Which parameters decay: a pure rule on names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

Named = tuple[str, torch.nn.Parameter]

# Layers, as Hugging Face names them: model.layers.3., transformer.h.3., bert.encoder.layer.3., ...
_IN_A_LAYER = re.compile(r"\.(layers|layer|h)\.\d+\.")


@dataclass(frozen=True)
class Group:
    """Parameters that share settings; `lr_scale` multiplies the engine's learning rate."""

    name: str
    parameters: tuple[Named, ...]
    weight_decay: float
    lr_scale: float = 1.0
    open_at: int = 0  # the first step that moves them


def whole_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    """The logical shape; under ZeRO-3 `parameter.shape` is that of an empty tensor."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def is_factor(name: str) -> bool:
    """IA3's factors lie as columns or rows, begin as 1 and mean nothing at 0."""
    return ".ia3_l." in name


def decays(shape: Sequence[int]) -> bool:
    """Matrices decay, vectors do not: biases and norm weights are vectors.

    Embeddings and the head are matrices and decay, as in GPT-2, GPT-NeoX, Llama and nanoGPT.
    """
    return len(shape) >= 2


def decay_groups(named: Iterable[Named], *, weight_decay: float) -> list[Group]:
    """At most two groups, "decay" and "no_decay", in the model's order; empty ones are left out.

    Frozen parameters belong to no group.
    """
    trained = [(n, p) for n, p in named if p.requires_grad]
    decay, no_decay = _split(trained, lambda name, shape: decays(shape) and not is_factor(name))
    groups = [Group("decay", decay, weight_decay), Group("no_decay", no_decay, 0.0)]
    return [g for g in groups if g.parameters]


def is_muon_matrix(name: str, shape: Sequence[int]) -> bool:
    """Matrices of decoder layers. Embeddings and the head act on one row at a time: AdamW."""
    if "relative_attention_bias" in name:  # of T5's first layers: a row for each distance
        return False
    return len(shape) == 2 and _IN_A_LAYER.search(name) is not None and not is_factor(name)


def muon_groups(
    named: Iterable[Named], *, weight_decay: float, adamw_lr_scale: float
) -> list[Group]:
    """ "muon" (matrices of layers), and AdamW's "decay" and "no_decay" with their own rate."""
    trained = [(n, p) for n, p in named if p.requires_grad]
    matrices, rest = _split(trained, is_muon_matrix)
    adamw = [
        replace(g, lr_scale=adamw_lr_scale) for g in decay_groups(rest, weight_decay=weight_decay)
    ]
    return [*([Group("muon", matrices, weight_decay)] if matrices else []), *adamw]


def _split(
    named: Iterable[Named], first: Callable[[str, tuple[int, ...]], bool]
) -> tuple[tuple[Named, ...], tuple[Named, ...]]:
    pairs = [(first(n, whole_shape(p)), (n, p)) for n, p in named]
    return tuple(x for yes, x in pairs if yes), tuple(x for yes, x in pairs if not yes)
