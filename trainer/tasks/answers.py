"""Answers of a decoder: what it is to say after a prompt or within a conversation, and no more.

Terms are the tokens of answers; prompts, other turns and padding have no labels.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from trainer.batch import ExampleBatch
from trainer.objectives.next_token import correct_count, next_token_loss_sum
from trainer.objectives.prefix_lm import prompts_of
from trainer.tasks.base import means, terms_scored


class Answers:
    """`model` is a trainer.models LanguageModel, perhaps inside an engine's wrapper.

    `label_smoothing` and `z_loss` are of the loss that is trained on, as weights of
    tokens are; scores are without.
    `prefix_lm`: prompts are read both ways.
    """

    def __init__(
        self, *, label_smoothing: float = 0.0, z_loss: float = 0.0, prefix_lm: bool = False
    ) -> None:
        self._of_loss = {"label_smoothing": label_smoothing, "z_loss": z_loss}
        self._prefix_lm = prefix_lm

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        fields = batch.fields
        log_probs_RT = model(
            fields["inputs_RT"],
            fields["positions_RT"],
            fields["labels_RT"],
            prompts_RT=self._prompts(batch),
            **self._of_loss,
        )
        weights_RT = fields.get("weights_RT")
        return next_token_loss_sum(log_probs_RT, fields["labels_RT"], weights_RT=weights_RT)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        fields = batch.fields
        log_probs_RT, correct_RT = model(
            fields["inputs_RT"],
            fields["positions_RT"],
            fields["labels_RT"],
            want="scores",
            prompts_RT=self._prompts(batch),
        )
        loss = next_token_loss_sum(log_probs_RT, fields["labels_RT"])
        correct = correct_count(correct_RT, fields["labels_RT"])
        loss_value, correct_value = torch.stack([loss.double(), correct.double()]).tolist()
        terms = terms_scored(batch)
        return {"terms": terms, "loss": loss_value, "correct": correct_value}

    def _prompts(self, batch: ExampleBatch) -> torch.Tensor | None:
        if not self._prefix_lm:
            return None
        return prompts_of(batch.fields["labels_RT"], batch.fields["positions_RT"])

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        return means(sums)
