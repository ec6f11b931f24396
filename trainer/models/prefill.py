"""Prompts that a decoder reads both ways, for transformers' generate to go on from: it knows causal
masks alone, but takes keys and values that somebody else made.

Shapes: R prompts, T positions.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from trainer.models.language_model import LanguageModel
from trainer.models.masks import as_taken, same_document


def prefilled(
    model: Any, inputs_RT: torch.Tensor, real_RT: torch.Tensor, *, copies: int = 1
) -> dict[str, Any]:
    """More for `model.hf.generate(inputs_RT, attention_mask=real_RT, ...)`; nothing for a model
    that reads its prompts as the rest.

    `real_RT`: 1, and 0 on padding, which stands on the left. `copies`: beams of each prompt.
    """
    if not isinstance(model, LanguageModel) or not model.reads_prompts_whole:
        return {}
    return {"past_key_values": _keys_and_values(model.hf, inputs_RT, real_RT, copies=copies)}


@torch.no_grad()
def _keys_and_values(
    hf: Any, inputs_RT: torch.Tensor, real_RT: torch.Tensor, *, copies: int
) -> Any:
    """Of all positions but the last, which sees what is before it in any case: generate begins with
    it. Keys of the others were computed with it in sight.
    """
    cache = importlib.import_module("transformers").DynamicCache(config=hf.config)
    dtype = next(hf.parameters()).dtype
    whole_R1TT = same_document(real_RT, real_RT)
    hf.base_model(
        input_ids=inputs_RT,
        attention_mask=as_taken(whole_R1TT, hf.config._attn_implementation, dtype),
        position_ids=(real_RT.cumsum(-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
    )
    cache.crop(-1)
    if copies > 1:
        cache.batch_repeat_interleave(copies)
    return cache
