"""Houlsby et al.'s adapter (2019): a narrow pair of matrices after a frozen one, added to it."""

from __future__ import annotations

import torch
from torch import nn


class Bottleneck(nn.Module):
    """What `base_layer` says, and what the pair makes of it: y + up(gelu(down(y)))."""

    def __init__(self, base_layer: nn.Module, *, size: int, outputs: int) -> None:
        super().__init__()
        self.base_layer = base_layer
        like = next(base_layer.parameters())
        device, dtype = like.device, like.dtype
        self.bottleneck = nn.ModuleDict(
            {
                "down": nn.Linear(outputs, size, device=device, dtype=dtype),
                "up": nn.Linear(size, outputs, device=device, dtype=dtype),
            }
        )

    @property
    def weight(self) -> nn.Parameter:
        """The frozen matrix's: T5 asks it what its inputs are to be."""
        return self.base_layer.get_parameter("weight")

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Shapes: as of the frozen matrix."""
        said: torch.Tensor = self.base_layer(inputs)
        inner = torch.nn.functional.gelu(self.bottleneck["down"](said))
        added: torch.Tensor = self.bottleneck["up"](inner)
        return said + added
