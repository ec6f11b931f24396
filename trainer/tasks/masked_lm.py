"""Masked tokens of text, told from what stands on both sides: pretraining of encoders.

Terms are the masked tokens, which the data has chosen (trainer/data/masked_reader.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.batch import ExampleBatch
from trainer.objectives.next_token import correct_count, next_token_loss_sum
from trainer.tasks.base import means


class MaskedLm:
    """`model` is a trainer.models EncoderModel with a masked-LM head, perhaps in an engine's.

    `label_smoothing` and `z_loss` are of the loss that is trained on; scores are without.
    """

    def __init__(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        self._of_loss = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        log_probs_RT = model(batch.fields, want="mlm", **self._of_loss)
        return next_token_loss_sum(log_probs_RT, batch.fields["labels_RT"])

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        labels_RT = batch.fields["labels_RT"]
        log_probs_RT, correct_RT = model(batch.fields, want="mlm_scores")
        loss, correct = (
            next_token_loss_sum(log_probs_RT, labels_RT),
            correct_count(correct_RT, labels_RT),
        )
        loss_value, correct_value = torch.stack([loss.double(), correct.double()]).tolist()
        return {"terms": float(batch.terms), "loss": loss_value, "correct": correct_value}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Of masked tokens; a perplexity of theirs is no next-token model's."""
        return means(sums)
