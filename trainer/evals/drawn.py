"""Answers drawn by chance, each from a generator of its own: the same whatever is beside it.

Shapes: R prompts of a batch, T positions so far, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Draw:
    """`temperature` above 0; `top_p`: the likeliest tokens that hold this much, 1: all.

    `seeds`: one for each prompt.
    """

    temperature: float
    top_p: float
    seeds: Sequence[int]


class Drawing:
    """What transformers' `generate` calls a logits processor: of each row one token is left.

    One number a token and row, and the inverse of the distribution's function: transformers' own
    sampling takes a batch's tokens from one generator, so a batch of another size draws others.
    """

    def __init__(self, draw: Draw, seeds: Sequence[int]) -> None:
        self._draw = draw
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, _ids_RT: torch.Tensor, logits_RV: torch.Tensor) -> torch.Tensor:
        chances_RV = torch.softmax(logits_RV.double() / self._draw.temperature, dim=-1)
        sorted_RV, order_RV = chances_RV.sort(dim=-1, descending=True, stable=True)
        until_RV = sorted_RV.cumsum(-1)
        # The token that first reaches top_p is in (Holtzman et al. 2020, sec. 3.1).
        kept_RV = (until_RV - sorted_RV) < self._draw.top_p
        whole_R = (sorted_RV * kept_RV).sum(-1)
        uniform = [torch.rand((), generator=g, dtype=torch.float64) for g in self._generators]
        drawn_R = torch.stack(uniform).to(whole_R.device) * whole_R
        place_R = (until_RV <= drawn_R[:, None]).sum(-1).clamp(max=kept_RV.sum(-1) - 1)
        token_R1 = order_RV.gather(-1, place_R[:, None])
        only_RV = torch.full_like(logits_RV, float("-inf"))
        return only_RV.scatter_(-1, token_R1, 0.0)
