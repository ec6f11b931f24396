"""Tags of words: entities (BIO, BIOES), or one tag a word as parts of speech.

Terms are the words' first sub-words; everything else has no label. Shapes: R rows, T positions,
C tags.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.batch import IGNORED, ExampleBatch
from trainer.evals.metrics.base import Metric, Sums, named, ratio, taken
from trainer.evals.metrics.confusion import Confusion
from trainer.evals.metrics.entities import EntityF1, entity_types
from trainer.objectives.cross_entropy import token_loss_sum
from trainer.tasks.base import terms_scored
from trainer.tasks.lengths import LengthBucket, buckets_of, lengths_of_places, sums_by_length

Ids = NDArray[np.int64]


class Tag:
    """`model` is a trainer.models EncoderModel with a token head, perhaps inside an engine's.

    Words that were cut from an example (the audit counts them) are no part of its scores.
    """

    def __init__(
        self,
        labels: Sequence[str],
        scheme: Literal["plain", "bio", "bioes"],
        *,
        label_smoothing: float = 0.0,
    ) -> None:
        """`label_smoothing`: of the loss that is trained on; scores are without.

        Raises: Refused for a tag that is not of the scheme.
        """
        self._label_smoothing = label_smoothing
        self._labels = tuple(labels)
        self._entities: EntityF1 | None = None
        if scheme != "plain":
            self._entities = EntityF1(entity_types(labels, scheme), scheme=scheme)
        self._metric: Metric = self._entities or Confusion(self._labels)

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        logits_RTC, labels_RT = model(batch.fields, want="tokens"), batch.fields["labels_RT"]
        weights_RT = batch.fields.get("weights_RT")
        return token_loss_sum(
            logits_RTC, labels_RT, weights_RT=weights_RT, label_smoothing=self._label_smoothing
        )

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        logits_RTC, labels_RT = model(batch.fields, want="tokens"), batch.fields["labels_RT"]
        loss = token_loss_sum(logits_RTC, labels_RT)
        # Of bf16 logits, too, the first of equals wins on every device only where they are fp32.
        chosen_RT = logits_RTC.float().argmax(-1)
        correct = ((chosen_RT == labels_RT) & (labels_RT != IGNORED)).sum()
        sums = {"terms": terms_scored(batch), "loss": loss.item(), "correct": float(correct)}
        found = self._compared(chosen_RT.cpu().numpy(), batch)
        counts_RT = (labels_RT != IGNORED).cpu().numpy()
        right = (chosen_RT == labels_RT).cpu().numpy()[counts_RT]
        lengths = lengths_of_places(batch.fields["documents_RT"])[counts_RT]
        return sums | named("answers", found) | sums_by_length(lengths, right)

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        terms = sums.get("terms", 0.0)
        found = self._metric.value(taken("answers", self._metric.size, sums))
        if self._entities is None:
            found.pop("accuracy")  # that is what token_accuracy says
        return {
            "loss": ratio(sums.get("loss", 0.0), terms),
            "token_accuracy": ratio(sums.get("correct", 0.0), terms),
            **found,
        }

    def buckets(self, sums: Mapping[str, float]) -> list[LengthBucket]:
        """Of words, by the length of their sentence."""
        return buckets_of(sums)

    def confusion(self, sums: Mapping[str, float]) -> tuple[Confusion, Sums] | None:
        """Of tags without spans alone: entities are found or not."""
        if not isinstance(self._metric, Confusion):
            return None
        return self._metric, taken("answers", self._metric.size, sums)

    def _compared(self, chosen_RT: Ids, batch: ExampleBatch) -> Sums:
        labels_RT = batch.fields["labels_RT"].cpu().numpy()
        if self._entities is None:
            return self._metric.sums_of(chosen_RT, labels_RT)
        found: Sums = np.zeros(self._metric.size)
        for chosen, labels in _sentences(chosen_RT, labels_RT, batch):
            found += self._metric.sums_of(self._names(chosen), self._names(labels))
        return found

    def _names(self, numbers: Ids) -> list[str]:
        return [self._labels[number] for number in numbers.tolist()]


def _sentences(chosen_RT: Ids, labels_RT: Ids, batch: ExampleBatch) -> Iterator[tuple[Ids, Ids]]:
    """(chosen, labels) of each example's words: entities never run from one into the next."""
    documents_RT = batch.fields["documents_RT"].cpu().numpy()
    for chosen_T, labels_T, documents_T in zip(chosen_RT, labels_RT, documents_RT, strict=True):
        for number in range(1, int(documents_T.max()) + 1):
            counts_T = (documents_T == number) & (labels_T != IGNORED)
            yield chosen_T[counts_T], labels_T[counts_T]
