"""Classes of texts and of pairs of texts: one, several, or a number.

Terms are examples. Shapes: E examples of the batch, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from trainer.batch import IGNORED, ExampleBatch
from trainer.evals.metrics.base import Metric, Sums, named, ratio, taken
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.confusion import Confusion, MultiLabel
from trainer.evals.metrics.correlation import Pearson
from trainer.objectives.cross_entropy import (
    class_loss_sum,
    multi_label_loss_sum,
    regression_loss_sum,
)
from trainer.tasks.confidence import (
    CALIBRATION,
    calibration_error,
    sums_of_classes,
    sums_taken,
)
from trainer.tasks.lengths import LengthBucket, buckets_of, lengths_of_examples, sums_by_length

Answers = Literal["single", "multi", "regression"]


class Classify:
    """`model` is a trainer.models EncoderModel with a sequence head, perhaps inside an engine's."""

    def __init__(
        self, answers: Answers, labels: Sequence[str], *, label_smoothing: float = 0.0
    ) -> None:
        """`label_smoothing`: of the loss of one class an example that is trained on."""
        self._answers: Answers = answers
        self._label_smoothing = label_smoothing
        self._metric: Metric
        match answers:
            case "single":
                self._metric = Confusion(tuple(labels))
            case "multi":
                self._metric = MultiLabel(tuple(labels))
            case _:
                self._metric = Pearson()

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        logits_EC = model(batch.fields, want="sequence")
        return self._loss(logits_EC, batch, label_smoothing=self._label_smoothing)

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        logits_EC = model(batch.fields, want="sequence")
        sums = {"terms": float(batch.terms), "loss": float(self._loss(logits_EC, batch))}
        real_E = batch.fields["weights_E"] > 0
        predicted, reference = self._compared(logits_EC.float(), batch, real_E)
        found = self._metric.sums_of(predicted.cpu().numpy(), reference.cpu().numpy())
        sums |= named("answers", found) | self._by_length(predicted, reference, batch, real_E)
        if self._answers != "single":
            return sums
        return sums | sums_of_classes(logits_EC, batch.fields["classes_E"], real_E=real_E)

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        found = taken("answers", self._metric.size, sums)
        loss = ratio(sums.get("loss", 0.0), sums.get("terms", 0.0))
        values = {"loss": loss, **self._metric.value(found)}
        return values | calibration_error(sums) if self._answers == "single" else values

    def buckets(self, sums: Mapping[str, float]) -> list[LengthBucket]:
        return buckets_of(sums)

    def calibration(self, sums: Mapping[str, float]) -> tuple[Calibration, Sums] | None:
        return (CALIBRATION, sums_taken(sums)) if self._answers == "single" else None

    def confusion(self, sums: Mapping[str, float]) -> tuple[Confusion, Sums] | None:
        if not isinstance(self._metric, Confusion):
            return None
        return self._metric, taken("answers", self._metric.size, sums)

    def _loss(
        self, logits_EC: torch.Tensor, batch: ExampleBatch, *, label_smoothing: float = 0.0
    ) -> torch.Tensor:
        fields, weights_E = batch.fields, batch.fields["weights_E"]
        match self._answers:
            case "single":
                return class_loss_sum(
                    logits_EC,
                    fields["classes_E"],
                    weights_E=weights_E,
                    label_smoothing=label_smoothing,
                )
            case "multi":
                return multi_label_loss_sum(logits_EC, fields["targets_EC"], weights_E=weights_E)
            case _:
                return regression_loss_sum(logits_EC, fields["targets_EC"], weights_E=weights_E)

    def _compared(
        self, logits_EC: torch.Tensor, batch: ExampleBatch, real_E: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """What the metric compares, of real examples alone."""
        if self._answers == "single":
            classes_E = batch.fields["classes_E"].masked_fill(~real_E, IGNORED)
            return logits_EC.argmax(-1), classes_E
        targets_EC = batch.fields["targets_EC"][real_E]
        if self._answers == "multi":
            return logits_EC[real_E] > 0, targets_EC > 0.5
        return logits_EC[real_E, 0], targets_EC[:, 0]

    def _by_length(
        self,
        predicted: torch.Tensor,
        reference: torch.Tensor,
        batch: ExampleBatch,
        real_E: torch.Tensor,
    ) -> dict[str, float]:
        if self._answers == "regression":  # no number is simply right
            return {}
        if self._answers == "single":
            right = (predicted == reference)[real_E]
        else:
            right = (predicted == reference).all(-1)
        real = real_E.cpu().numpy()
        return sums_by_length(lengths_of_examples(batch.fields)[real], right.cpu().numpy())
