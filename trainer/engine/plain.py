"""The reference: one process, plain PyTorch. What every other engine is held against."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from trainer.config.sections.regularize import EmaSection
from trainer.config.sections.training import PrecisionSection
from trainer.engine import fragments
from trainer.engine.base import FragmentSource, HeldFragment, StepStats, always, set_rates
from trainer.engine.model_setup import (
    MakeModel,
    MakeOptimizer,
    compute_in_bf16,
    settle,
    trained,
    weight_dtype,
)
from trainer.engine.weight_average import average_of
from trainer.errors import ConfigError, Problem


class PlainEngine:
    """fp32, autocast, or bf16 weights with fp32 masters that the optimizer works on."""

    def __init__(
        self,
        make_model: MakeModel,
        make_optimizer: MakeOptimizer,
        *,
        device: torch.device,
        precision: PrecisionSection,
        max_grad_norm: float,
        average: EmaSection | None = None,
    ) -> None:
        """`max_grad_norm`: 0 for no clipping. `average`: of the weights, to be kept.

        Raises: ConfigError for fp16.
        """
        if precision.kind == "fp16":
            raise ConfigError([_NO_FP16])
        self.device = device
        self._max_grad_norm = max_grad_norm or math.inf
        self._accumulate_in_fp32 = precision.accumulate_in == "fp32"
        self._model = make_model()
        settle(self._model, dtype=weight_dtype(precision.kind), device=device)
        if precision.kind == "autocast":
            compute_in_bf16(self._model, device)
        self._weights = trained(self._model)
        self._masters = [(n, _master(p)) for n, p in self._weights]
        self._optimizer = make_optimizer(self._masters)
        owned = [(p, g) for g in self._optimizer.param_groups for p in g["params"]]
        fragments.create_moments(self._optimizer, owned)
        owners = [p for p, _ in owned]
        self._average = average_of(
            average, self._optimizer, lambda: owners, refresh=self._refresh_weights
        )

    @property
    def model(self) -> nn.Module:
        return self._model

    def accumulate(self, loss: torch.Tensor, *, last: bool) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        if last or self._accumulate_in_fp32:
            self._move_gradients_to_masters()

    @torch.no_grad()
    def step(
        self,
        *,
        lr: float,
        number: int | None = None,
        apply_if: Callable[[float], bool] = always,
    ) -> StepStats:
        set_rates(self._optimizer, lr, number=number)
        masters = [p for _, p in self._masters]
        norm = float(nn.utils.clip_grad_norm_(masters, self._max_grad_norm))
        applied = math.isfinite(norm) and apply_if(norm)
        if applied:
            self._optimizer.step()
            self._refresh_weights()
            if self._average is not None:
                self._average.update()
        self._optimizer.zero_grad(set_to_none=True)
        return StepStats(norm, applied)

    def fragments(self) -> Iterator[HeldFragment]:
        return fragments.held(fragments.whole(self._masters), self._optimizer)

    def load(self, source: FragmentSource, *, step: int) -> None:
        fragments.fill(fragments.whole(self._masters), self._optimizer, source, step=step)
        if self._average is not None:
            self._average.loaded(step)
        self._refresh_weights()

    def layout(self) -> Sequence[tuple[str, tuple[int, ...]]]:
        return [(name, tuple(p.shape)) for name, p in self._masters]

    def averaged(self) -> AbstractContextManager[None]:
        return nullcontext() if self._average is None else self._average.instead()

    def replicated(self) -> Sequence[tuple[str, torch.Tensor]]:
        return []

    def close(self) -> None:
        """Nothing is held that garbage collection would not free."""

    def _move_gradients_to_masters(self) -> None:
        for (_, weight), (_, master) in zip(self._weights, self._masters, strict=True):
            if weight is master or weight.grad is None:
                continue
            gradient = weight.grad.float()
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

    @torch.no_grad()
    def _refresh_weights(self) -> None:
        for (_, weight), (_, master) in zip(self._weights, self._masters, strict=True):
            if weight is not master:
                weight.copy_(master)


def _master(weight: nn.Parameter) -> nn.Parameter:
    if weight.dtype == torch.float32:
        return weight
    master = nn.Parameter(weight.detach().float())
    master.__dict__.update(weight.__dict__)
    return master


_NO_FP16 = Problem(
    "precision.kind",
    "fp16 needs a loss scale, which only the deepspeed engines have",
    "precision=bf16",
)
