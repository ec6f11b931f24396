"""Texts from texts by an encoder-decoder: the target is said while the source is read.

Terms are the tokens of targets, their ends included; of text whose spans are cut out, those of what
the decoder is to say.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.batch import ExampleBatch
from trainer.objectives.next_token import correct_count, next_token_loss_sum
from trainer.tasks.base import means, terms_scored


class Targets:
    """`model` is a trainer.models EncoderDecoderModel, perhaps inside an engine's wrapper.

    `label_smoothing` and `z_loss` are of the loss that is trained on, as weights of
    tokens are; scores are without.
    """

    def __init__(self, *, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        self._of_loss = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        log_probs_RS = model(batch.fields, **self._of_loss)
        weights_RS = batch.fields.get("weights_RS")
        return next_token_loss_sum(log_probs_RS, batch.fields["labels_RS"], weights_RT=weights_RS)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        labels_RS = batch.fields["labels_RS"]
        log_probs_RS, correct_RS = model(batch.fields, want="scores")
        loss = next_token_loss_sum(log_probs_RS, labels_RS)
        correct = correct_count(correct_RS, labels_RS)
        loss_value, correct_value = torch.stack([loss.double(), correct.double()]).tolist()
        terms = terms_scored(batch)
        return {"terms": terms, "loss": loss_value, "correct": correct_value}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        return means(sums)
