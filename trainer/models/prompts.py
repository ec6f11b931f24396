"""Virtual tokens before a decoder's row: embeddings (prompt, p-tuning), or keys and values.

A row is one document: of several that are packed, the first alone would see them as peft does.

Shapes: R rows, T positions, n virtual tokens, D hidden size, L layers, H key heads, W head width.
"""

from __future__ import annotations

import importlib
from typing import Any, NoReturn

import torch
from torch import nn

from trainer.errors import Refused


class Prompt(nn.Module):
    """`encoder`: peft's module, numbers of virtual tokens (1, n) -> (1, n, ...)."""

    def __init__(self, encoder: nn.Module, *, virtual_tokens: int, is_prefix: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.virtual_tokens = virtual_tokens
        self.is_prefix = is_prefix

    def forward(self, hf: Any, inputs_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
        """(R, T, D): the decoder's hidden states of the row's own tokens, which begin at n."""
        at_RT = positions_RT + self.virtual_tokens
        if self.is_prefix:
            cache = self._cache(hf.config, len(inputs_RT))
            decoded = hf.base_model(
                input_ids=inputs_RT, position_ids=at_RT, past_key_values=cache, use_cache=True
            )
            return decoded.last_hidden_state  # type: ignore[no-any-return]
        own_RTD = hf.get_input_embeddings()(inputs_RT)
        virtual_RnD = self.embeddings(len(inputs_RT)).to(own_RTD.dtype)
        before_Rn = self._numbers(inputs_RT.device).expand(len(inputs_RT), -1)
        decoded = hf.base_model(
            inputs_embeds=torch.cat([virtual_RnD, own_RTD], dim=1),
            position_ids=torch.cat([before_Rn, at_RT], dim=1),
            use_cache=False,
        )
        hidden_RTD: torch.Tensor = decoded.last_hidden_state[:, self.virtual_tokens :]
        return hidden_RTD

    def embeddings(self, rows: int = 1) -> torch.Tensor:
        """(rows, n, ...): what peft keeps of it, once for all rows."""
        numbers_1n = self._numbers(next(self.encoder.parameters()).device)
        made_1n: torch.Tensor = self.encoder(numbers_1n)
        return made_1n.expand(rows, -1, -1)

    def _numbers(self, device: torch.device) -> torch.Tensor:
        return torch.arange(self.virtual_tokens, device=device).unsqueeze(0)

    def _cache(self, config: Any, rows: int) -> Any:
        """A key and a value of every layer. Source: peft 0.21, PeftModel.get_prompt."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        layers, tokens = config.num_hidden_layers, self.virtual_tokens
        flat_RnM = self.embeddings(rows)
        split = flat_RnM.reshape(rows, tokens, 2 * layers, heads, -1).permute(2, 0, 3, 1, 4)
        cache = importlib.import_module("transformers").DynamicCache()
        for layer in range(layers):
            cache.update(split[2 * layer].contiguous(), split[2 * layer + 1].contiguous(), layer)
        return cache


def refuse_to_generate(*given: Any, **named: Any) -> NoReturn:
    """Instead of transformers' generate, which knows nothing of virtual tokens."""
    raise Refused(
        "texts are generated without the virtual tokens that this run trained: export them "
        "(longhaul export --adapter) and load them by peft over the base"
    )
