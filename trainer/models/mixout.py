"""Mixout: in training some weights are, for a step, those that the model started with.

Matrices of the layers have a frozen copy beside them, `starting_weight`, which whoever gives the
model storage fills as what an adapter froze: sharded where the matrix is, in no checkpoint. Biases,
norms, embeddings and heads are left alone.

Shapes: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainer.dist.seeds import seed_of
from trainer.errors import ConfigError, Problem
from trainer.models.adapters import STARTING
from trainer.models.wrappers import AnyModel


class Mixing:
    """What all matrices of a model share: which step it is. None: nothing is mixed."""

    def __init__(self, rate: float, seed: int) -> None:
        self.rate, self.seed = rate, seed
        self.step: int | None = None

    def mask(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The same for all rows of a step, on every rank: a pure function of (seed, step, name)."""
        draws = torch.Generator(device=like.device)
        draws.manual_seed(seed_of("mixout", self.seed, self.step or 0, name))
        drawn = torch.rand(like.shape, generator=draws, device=like.device)
        return drawn < self.rate


class MixedLinear(nn.Linear):
    """A linear layer that computes with mixed weights while it is trained."""

    def __init__(self, old: nn.Linear, mixing: Mixing, *, name: str) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = old.in_features, old.out_features
        self.weight, self.bias = old.weight, old.bias
        copy = nn.Parameter(torch.empty_like(old.weight), requires_grad=False)
        self.register_parameter(STARTING, copy)
        self.__dict__["mixing"] = mixing  # no part of the module
        self._name = name

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mixing: Mixing = self.__dict__["mixing"]
        if not self.training or mixing.step is None:
            return super().forward(inputs)
        mask_OI = mixing.mask(self._name, self.weight)
        starting = self.get_parameter(STARTING)
        said: torch.Tensor = _Mixed.apply(  # type: ignore[no-untyped-call]
            inputs, self.weight, starting, self.bias, mask_OI, mixing.rate
        )
        return said


class _Mixed(torch.autograd.Function):
    """One node of the graph, as of any linear layer, so that ZeRO-3 has both matrices here and in
    the backward; what is kept of them in between are the parameters themselves."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: torch.Tensor,
        weight_OI: torch.Tensor,
        starting_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        mask_OI: torch.Tensor,
        rate: float,
    ) -> torch.Tensor:
        ctx.rate = rate
        ctx.save_for_backward(inputs, weight_OI, starting_OI, bias_O, mask_OI)
        mixed_OI = mixout(weight_OI, starting_OI, keep_pretrained=mask_OI, rate=rate)
        return F.linear(inputs, mixed_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        inputs, weight_OI, starting_OI, bias_O, mask_OI = ctx.saved_tensors
        (given,) = grads
        d_inputs = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            mixed_OI = mixout(weight_OI, starting_OI, keep_pretrained=mask_OI, rate=ctx.rate)
            d_inputs = (given @ mixed_OI.to(given.dtype)).to(inputs.dtype)
        flat_NO = given.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            d_OI = (flat_NO.T @ inputs.flatten(0, -2).to(given.dtype)).to(weight_OI.dtype)
            d_weight = d_OI.masked_fill_(mask_OI, 0.0).div_(1.0 - ctx.rate)
        if bias_O is not None and ctx.needs_input_grad[3]:
            d_bias = flat_NO.sum(0).to(bias_O.dtype)
        return d_inputs, d_weight, None, d_bias, None, None


def mix_out(model: AnyModel, *, rate: float, seed: int) -> int:
    """Let the matrices of the model's layers be mixed; how many there are. On meta, in place.

    Raises: ConfigError for a model that has none of torch's.
    """
    mixing = Mixing(rate, seed)
    model.__dict__["mixing"] = mixing
    inside = {id(m) for layer in model.layers for m in layer.modules()}
    found = [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear and id(m) in inside]
    if not found:
        what = f"the layers of {model.hf.config.model_type} have no matrices of torch's own kind"
        raise ConfigError([Problem("regularize.mixout", what, "regularize.mixout=0")])
    for name, module in found:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, MixedLinear(module, mixing, name=name))
    return len(found)


def mixout(
    weights: torch.Tensor, pretrained: torch.Tensor, *, keep_pretrained: torch.Tensor, rate: float
) -> torch.Tensor:
    """Some weights are replaced by the pretrained ones, the others scaled so that the mean stays.

    `keep_pretrained`: a mask of booleans, true with chance `rate` (drawn by the caller).
    Source: Lee et al. 2020 (Mixout), sec. 3.
    """
    mixed = torch.where(keep_pretrained, pretrained, weights)
    return (mixed - rate * pretrained) / (1.0 - rate)
