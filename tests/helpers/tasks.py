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


class PoisonedRows(CausalLm):
    """Rows of some samples [first, stop) have a loss a hundred times too large."""

    def __init__(self, *, first: int, stop: int) -> None:
        self._poisoned = range(first, stop)

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        total = super().loss_sum(model, batch)
        for row, sample in enumerate(batch.sample_indices):
            if sample in self._poisoned:
                one = slice(row, row + 1)
                alone = TokenBatch(
                    batch.inputs_RT[one], batch.labels_RT[one], batch.positions_RT[one], (), 0, 0
                )
                total = total + 99 * super().loss_sum(model, alone)
        return total


class NotInBfloat16(CausalLm):
    """Divides by what is lost in 16 bits, in the rows that hold sample `at`."""

    def __init__(self, *, at: int) -> None:
        self._at = at

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        total = super().loss_sum(model, batch)
        if self._at not in batch.sample_indices:
            return total
        small = torch.tensor(1.001, dtype=next(model.parameters()).dtype) - 1.0
        return total + 0.0 / small.float().to(total.device)
