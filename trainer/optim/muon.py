"""Muon: momentum, orthogonalised by Newton-Schulz, for matrices; AdamW for the rest.

One process with whole matrices. Names of the state and the arithmetic are those of DeepSpeed's
MuonWithAuxAdam (0.19), which does the same on ZeRO's shards, so that both can be compared.
Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # steepest at zero; singular values end in [0.5, 1.5]
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Groups with `use_muon` need `momentum`; the others `betas` and `eps`.

    The state is made by the engine before the first step, or in it: under ZeRO it is only that of
    this rank's shards, which do not exist yet when the optimizer is made.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(groups), {})

    @staticmethod
    def moment_names(group: dict[str, Any]) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["use_muon"] else ("exp_avg", "exp_avg_sq")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "losses are computed by the loop"
        for group in self.param_groups:
            update = self._muon if group["use_muon"] else self._adamw
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1.0 - group["lr"] * group["weight_decay"])
                    p.add_(update(p.grad, self._state(p, group), group), alpha=-group["lr"])

    def _state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Any]:
        state: dict[str, Any] = self.state[p]
        if not state:
            state |= {m: torch.zeros_like(p, requires_grad=False) for m in self.moment_names(group)}
            state |= {} if group["use_muon"] else {"step": 0}
        return state

    def _muon(
        self, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> torch.Tensor:
        momentum: torch.Tensor = state["momentum_buffer"].lerp_(grad, 1.0 - group["momentum"])
        nesterov = torch.lerp(grad, momentum, group["momentum"])
        return orthogonalized(nesterov) * math.sqrt(max(1.0, grad.shape[0] / grad.shape[1]))

    def _adamw(
        self, grad: torch.Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> torch.Tensor:
        beta1, beta2 = group["betas"]
        state["step"] += 1
        mean: torch.Tensor = state["exp_avg"].lerp_(grad, 1.0 - beta1)
        square: torch.Tensor = state["exp_avg_sq"].lerp_(grad.square(), 1.0 - beta2)
        mean = mean / (1.0 - beta1 ** state["step"])
        square = square / (1.0 - beta2 ** state["step"])
        update: torch.Tensor = mean / (square.sqrt() + group["eps"])
        return update


def orthogonalized(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (semi-)orthogonal matrix, roughly: singular values become 0.5 to 1.5.

    In bf16 on a GPU, where it is twice as fast and good enough; in fp32 on the CPU.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: torch.Tensor = (x.T if tall else x).to(matrix.dtype)
    return result
