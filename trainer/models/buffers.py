"""Buffers of a model (rotary frequencies, position numbers): exact values, whatever is cast."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def exact_buffers(model: nn.Module, hf: Any) -> dict[str, torch.Tensor]:
    """By Hugging Face's own rule, on the CPU, for every buffer (none of theirs is trained).

    Floating ones in fp32. `hf`: whose `_init_weights` fills them.
    """
    found: dict[str, torch.Tensor] = {}
    for path, module in model.named_modules():
        kept = dict(module.named_buffers(recurse=False))
        for leaf, buffer in kept.items():
            dtype = torch.float32 if buffer.is_floating_point() else buffer.dtype
            empty = torch.empty(buffer.shape, dtype=dtype, device="cpu")
            module._buffers[leaf] = found[f"{path}.{leaf}"] = empty
        if kept:
            hf._init_weights(module)
            module._buffers.update(kept)
    return found


def restore_buffers(model: nn.Module, values: dict[str, torch.Tensor]) -> None:
    """Give every buffer its exact value again, on the device it is on.

    `module.bfloat16()`, which DeepSpeed calls, would leave rotary frequencies in bf16: angles
    wrong by radians at far positions, without a word. So casting a model never casts them.
    """
    for name, value in values.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        held = module.get_buffer(leaf)
        device = value.device if held.is_meta else held.device
        module._buffers[leaf] = value.to(device, copy=True)
