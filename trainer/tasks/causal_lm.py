"""Next-token prediction over packed rows: pretraining."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch

from trainer.batch import TokenBatch
from trainer.objectives.next_token import correct_count, next_token_loss_sum
from trainer.tasks.base import means


class CausalLm:
    """`model` is a trainer.models LanguageModel, perhaps inside an engine's wrapper.

    `label_smoothing` and `z_loss` are of the loss that is trained on; scores are without.
    """

    _of_loss: Mapping[str, float] = MappingProxyType({})  # of a subclass that makes itself

    def __init__(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        self._of_loss = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        log_probs_RT = model(batch.inputs_RT, batch.positions_RT, batch.labels_RT, **self._of_loss)
        return next_token_loss_sum(log_probs_RT, batch.labels_RT)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: TokenBatch) -> dict[str, float]:
        log_probs_RT, correct_RT = model(
            batch.inputs_RT, batch.positions_RT, batch.labels_RT, want="scores"
        )
        loss = next_token_loss_sum(log_probs_RT, batch.labels_RT)
        correct = correct_count(correct_RT, batch.labels_RT)
        loss_value, correct_value = torch.stack([loss.double(), correct.double()]).tolist()
        return {"terms": float(batch.terms), "loss": loss_value, "correct": correct_value}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        return means(sums)
