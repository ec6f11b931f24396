"""What a task is: it turns a micro-batch into a sum of losses over terms."""

from __future__ import annotations

from typing import Protocol

import torch

from trainer.batch import TokenBatch


class Task(Protocol):
    """Pure: no state, no collectives, no knowledge of ranks or steps."""

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        """The sum of the losses of the batch's terms: a scalar with gradient, fp64 if it can.

        A batch without terms still runs the model (ZeRO-3 gathers on all ranks) and gives 0.
        """

    def score(self, model: torch.nn.Module, batch: TokenBatch) -> dict[str, float]:
        """Sums over the batch's terms, for evaluation; always holds "terms" and "loss".

        Evaluations add the sums of all ranks and divide by "terms".
        """
