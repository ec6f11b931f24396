"""Hidden tokens of two stretches of text, and whether the second follows the first: BERT's own
pretraining.

Terms are pairs. A pair's loss is the mean over its hidden tokens plus that of its one question, as
BertForPreTraining says it of a single row; so a step's loss does not depend on how rows are dealt.

Shapes: R rows, T positions, E pairs (one a row).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from trainer.batch import IGNORED, ExampleBatch
from trainer.evals.metrics.base import ratio
from trainer.objectives.cross_entropy import class_loss_sum
from trainer.objectives.next_token import correct_count, next_token_loss_sum


class MaskedPairs:
    """`model` is a trainer.models EncoderModel with BERT's two heads, perhaps in an engine's."""

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        log_probs_RT, logits_EC = model(batch.fields, want="nsp")
        return _loss_sum(log_probs_RT, logits_EC, batch)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        fields, labels_RT = batch.fields, batch.fields["labels_RT"]
        log_probs_RT, correct_RT, logits_EC = model(fields, want="nsp_scores")
        right_E = (logits_EC.argmax(-1) == fields["classes_E"]) & (fields["weights_E"] > 0)
        sums = {
            "loss": _loss_sum(log_probs_RT, logits_EC, batch),
            "hidden": (labels_RT != IGNORED).sum(),
            "hidden_loss": next_token_loss_sum(log_probs_RT, labels_RT),
            "correct": correct_count(correct_RT, labels_RT),
            "right": right_E.sum(),
        }
        values = torch.stack([value.double() for value in sums.values()]).tolist()
        return {"terms": float(batch.terms), **dict(zip(sums, values, strict=True))}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Perplexity and token accuracy are of hidden tokens, next_sentence_accuracy of pairs."""
        terms, hidden = sums.get("terms", 0.0), sums.get("hidden", 0.0)
        mean = ratio(sums.get("hidden_loss", 0.0), hidden)
        return {
            "loss": ratio(sums.get("loss", 0.0), terms),
            "masked_loss": mean,
            "perplexity": math.exp(min(mean, 700.0)),  # as trainer/tasks/base.py has it
            "token_accuracy": ratio(sums.get("correct", 0.0), hidden),
            "next_sentence_accuracy": ratio(sums.get("right", 0.0), terms),
        }


def _loss_sum(
    log_probs_RT: torch.Tensor, logits_EC: torch.Tensor, batch: ExampleBatch
) -> torch.Tensor:
    fields, counts_RT = batch.fields, batch.fields["labels_RT"] != IGNORED
    of_row_R = -log_probs_RT.masked_fill(~counts_RT, 0.0).sum(-1, dtype=torch.float64)
    hidden = (of_row_R / counts_RT.sum(-1).clamp(min=1)).sum()
    follows = class_loss_sum(logits_EC, fields["classes_E"], weights_E=fields["weights_E"])
    return hidden + follows
