"""DoRA's lengths where ZeRO-3 can compute with them.

peft measures the frozen matrix after the forward of its module, when DeepSpeed has taken it apart
again. Here what the module computed with is kept for that moment: a reference, no copy and nothing
sent. It costs the memory of one gathered matrix until its lengths are known.

Shapes: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_STANDING = "standing"  # of a frozen layer: what its last forward computed with


class Magnitude(nn.Module):
    """In peft's DoraLinearLayer's place, computing what that does. `weight`: lengths (O)."""

    def __init__(self, weight: nn.Parameter, *, transposed: bool) -> None:
        super().__init__()
        self.weight = weight
        self._transposed = transposed

    def forward(
        self,
        x: torch.Tensor,
        *,
        lora_A: nn.Linear,
        lora_B: nn.Linear,
        scaling: float,
        base_layer: Any,
        base_result: torch.Tensor | None = None,
        adapter_name: str = "default",
    ) -> torch.Tensor:
        """What is to be added to the frozen layer's answer. Lengths that divide have no gradient
        (Liu et al. 2024, sec. 4.3). Source: peft 0.21, lora.dora.DoraLinearLayer.forward.
        """
        if base_result is None:  # of what dropout left
            base_result = base_layer(x)
        weight, bias = base_layer.__dict__.pop(_STANDING)
        length_O = self._lengths(weight, lora_A, lora_B, scaling, dtype=x.dtype)
        factor_1O = (self.weight / length_O).view(1, -1)
        if bias is not None:
            base_result = base_result - bias
        added = lora_B(lora_A(x))
        found: torch.Tensor = (factor_1O - 1) * base_result + factor_1O * added * scaling
        return found

    @torch.no_grad()
    def _lengths(
        self,
        weight: torch.Tensor,
        lora_a: nn.Linear,
        lora_b: nn.Linear,
        scaling: float,
        *,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """(O): of the rows of the frozen matrix and what is added to it. Through the forwards of
        both factors, around which ZeRO-3 gathers them."""
        size, taken = lora_a.in_features, lora_a.weight.dtype
        eye_II = torch.eye(size, device=weight.device, dtype=taken)
        more_OI = lora_b(lora_a(eye_II)).T.to(dtype)
        frozen_OI = weight.T if self._transposed else weight
        whole_OI = frozen_OI.to(dtype) + scaling * more_OI
        length_O: torch.Tensor = torch.linalg.norm(whole_OI, dim=1)
        return length_O.to(dtype)


def let_lengths_be_measured(model: nn.Module, *, transposed: bool) -> None:
    """Of every layer of peft's that has lengths. Before an engine adds hooks of its own: the one
    here has to see the matrix before it is taken apart.
    """
    for module in model.modules():
        held = getattr(module, "lora_magnitude_vector", None)
        if not held:
            continue
        for name, layer in list(held.items()):
            held[name] = Magnitude(layer.weight, transposed=transposed)
        module.get_submodule("base_layer").register_forward_hook(_keep)


def _keep(layer: Any, _given: Any, _said: Any) -> None:
    bias = getattr(layer, "bias", None)
    layer.__dict__[_STANDING] = (layer.weight.detach(), None if bias is None else bias.detach())
