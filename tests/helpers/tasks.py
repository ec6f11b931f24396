"""A task of a user's own package, as far as tests are concerned."""

from __future__ import annotations

import os

import torch

from trainer.batch import TokenBatch
from trainer.tasks.causal_lm import CausalLm


class FailsOnOneRank(CausalLm):
    """Raises in the forward of micro-batch `at` on rank `rank`."""

    def __init__(self, *, rank: int, at: int) -> None:
        self._left = at if int(os.environ.get("RANK", "0")) == rank else -1

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        self._left -= 1
        if self._left == 0:
            raise ValueError("a row of the user's own making")
        return super().loss_sum(model, batch)
