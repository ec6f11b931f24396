"""Dropout on CPUs, drawn four numbers at a time.

torch draws a float for each element, and without a fused kernel for dropout in attention a small
encoder's step spends an eighth of its time there. Here an element is dropped where 16 random bits
are below the rate: a quarter of the draws, and a rate that is right to 1/131,072. The bits come
from torch's own generator, so that they are the same function of its seed on every run.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer.models.masks import as_taken

ATTENTION = "sdpa_cheap_dropout"
_RATES = ("attention_probs_dropout_prob", "attention_dropout")
_VALUES = 1 << 16  # of 16 bits


def dropped(x: torch.Tensor, rate: float) -> torch.Tensor:
    """Each element is 0 with probability `rate`, else scaled so that its mean stays what it is."""
    few = round(rate * _VALUES)
    if few in (0, _VALUES):
        return x * (1.0 - few / _VALUES)
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
    bits = draws.view(torch.int16)[: x.numel()].view(x.shape)
    kept = (bits >= few - _VALUES // 2).to(x.dtype)
    return x * kept.mul_(_VALUES / (_VALUES - few))


class Dropout(nn.Dropout):
    """As its parent, but for training on a CPU outside a compiled graph."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cheap = x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not (self.training and self.p and cheap):
            return super().forward(x)
        return dropped(x, self.p)


def use_cheap_dropout(hf: nn.Module) -> None:
    """In all modules that torch's own would be called by; its attention is another matter."""
    for module in list(hf.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Dropout:
                setattr(module, name, Dropout(child.p))


def drops_in_attention(config: Any) -> bool:
    """`config`: Hugging Face's."""
    return any(getattr(config, name, 0.0) for name in _RATES)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    *,
    otherwise: Callable[..., Any],
    **more: Any,
) -> tuple[torch.Tensor, None]:
    """`otherwise` (transformers' sdpa) but for dropout under a mask, on a CPU: query, key, value
    are (R, heads, T, width), the mask bool (R, 1, T, T); the answer is (R, T, heads, width)."""
    cheap = query.device.type == "cpu" and not torch.compiler.is_compiling()
    if not dropout or attention_mask is None or not cheap:
        theirs = otherwise(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return theirs[0], None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.matmul(query * scale, key.transpose(-1, -2))
    weights = torch.softmax(scores + as_taken(attention_mask, "eager", scores.dtype), -1)
    return torch.matmul(dropped(weights, dropout), value).transpose(1, 2).contiguous(), None
