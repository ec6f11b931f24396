"""The caller's word between DeepSpeed's gradient norm and its update.

DeepSpeed 0.19.8 has no such place, but each of its optimizers (ZeRO 1 and 2, ZeRO 3, and the one it
takes for stage 1 with bf16 weights and fp32 gradients) notes the norm and only then calls `step` of
the optimizer it was given, once a group. Where that does nothing, the rest of its step rounds
unchanged masters to the weights they have already, and drops the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class LastWord:
    """Stands before `step` of the optimizer inside one of DeepSpeed's."""

    def __init__(self, optimizer: torch.optim.Optimizer, zero: Any) -> None:
        self._zero = zero
        self._update: Callable[[], object] = optimizer.step
        optimizer.step = self._step  # type: ignore[method-assign, assignment]
        self.given_to(lambda norm: True)

    def given_to(self, apply_if: Callable[[float], bool]) -> None:
        """Before each step. `apply_if` is asked at most once, and only about a finite norm."""
        self._apply_if = apply_if
        self._asked = self.applied = False
        self.norm = math.inf  # unless one is found that is finite: DeepSpeed stops before us

    def _step(self, closure: object = None) -> None:
        if not self._asked:
            self._asked = True
            self.norm = float(self._zero._global_grad_norm)
            self.applied = self._apply_if(self.norm)
        if self.applied:
            self._update()

    @property
    def overflowed(self) -> bool:
        return not self._asked
