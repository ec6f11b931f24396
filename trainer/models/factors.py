"""IA3's factors where ZeRO-3 can gather them.

peft keeps them in a dictionary, which has no forward; but a module's forward is what DeepSpeed
gathers its parameters for.
"""

from __future__ import annotations

from collections.abc import KeysView

import torch
from torch import nn


class Factors(nn.Module):
    """To peft a dictionary by the adapters' names; each look-up is a forward."""

    def __init__(self, held: dict[str, nn.Parameter]) -> None:
        super().__init__()
        for name, parameter in held.items():
            self.register_parameter(name, parameter)
        self._names = dict.fromkeys(held)

    def __getitem__(self, name: str) -> torch.Tensor:
        found: torch.Tensor = self(name)
        return found

    def keys(self) -> KeysView[str]:
        return self._names.keys()

    def forward(self, name: str) -> torch.Tensor:
        """A copy: what was gathered goes again when this returns."""
        return self.get_parameter(name).clone()


def let_factors_be_gathered(model: nn.Module) -> None:
    for module in model.modules():
        held = getattr(module, "ia3_l", None)
        if isinstance(held, nn.ParameterDict):
            module.ia3_l = Factors(dict(held.items()))
