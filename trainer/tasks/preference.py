"""Of two answers to a prompt, the one that is preferred: DPO against a reference, ORPO, rewards.

Terms are pairs. Shapes: R rows, T positions, E pairs of the batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batch import IGNORED, ExampleBatch
from trainer.evals.metrics.base import ratio
from trainer.models.pairs import pairs_of
from trainer.objectives.preference import (
    dpo_loss_sum,
    dpo_margins,
    orpo_loss_sum,
    orpo_margins,
    reward_loss_sum,
    sums_by_example,
)

Judged = tuple[torch.Tensor, torch.Tensor]  # (sum of the losses, margins (E) of the right answer)


class _Pairs(ABC):
    """What is said of pairs, however they are judged."""

    @abstractmethod
    def judged(self, model: torch.nn.Module, batch: ExampleBatch) -> Judged: ...

    def loss_sum(self, model: torch.nn.Module, batch: ExampleBatch) -> torch.Tensor:
        return self.judged(model, batch)[0]

    @torch.no_grad()
    def score(self, model: torch.nn.Module, batch: ExampleBatch) -> dict[str, float]:
        loss, margin_E = self.judged(model, batch)
        real_E = batch.fields["weights_E"] > 0
        preferred = (margin_E[real_E] > 0).sum()
        margin = margin_E[real_E].sum(dtype=torch.float64)
        found = torch.stack([loss.double(), preferred.double(), margin]).tolist()
        names = ("loss", "preferred", "margin")
        return {"terms": float(batch.terms), **dict(zip(names, found, strict=True))}

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """accuracy: of pairs, those whose right answer is rated above the other; margin: by how
        much, on average: implicit rewards (dpo), log odds (orpo), rewards."""
        terms = sums.get("terms", 0.0)
        of = {"loss": "loss", "accuracy": "preferred", "margin": "margin"}
        return {name: ratio(sums.get(key, 0.0), terms) for name, key in of.items()}


@dataclass(frozen=True)
class Dpo(_Pairs):
    """`model` is a trainer.models LanguageModel with a reference, perhaps in an engine's."""

    beta: float
    label_smoothing: float

    def judged(self, model: torch.nn.Module, batch: ExampleBatch) -> Judged:
        fields, pairs = batch.fields, pairs_of(batch.fields)
        given = fields["inputs_RT"], pairs.positions_RT, fields["labels_RT"]
        both = model(*given, want="with_reference")
        number = len(fields["weights_E"])
        (chosen_E, rejected_E), (reference_chosen_E, reference_rejected_E) = (
            [sums_by_example(said, whose, number) for whose in (pairs.chosen_RT, pairs.rejected_RT)]
            for said in both
        )
        given_E: dict[str, Any] = {
            "reference_chosen_P": reference_chosen_E,
            "reference_rejected_P": reference_rejected_E,
            "beta": self.beta,
        }
        loss = dpo_loss_sum(
            chosen_E,
            rejected_E,
            weights_P=fields["weights_E"],
            label_smoothing=self.label_smoothing,
            **given_E,
        )
        return loss, dpo_margins(chosen_E, rejected_E, **given_E)


@dataclass(frozen=True)
class Orpo(_Pairs):
    """`model` is a trainer.models LanguageModel, perhaps inside an engine's wrapper."""

    odds_weight: float

    def judged(self, model: torch.nn.Module, batch: ExampleBatch) -> Judged:
        fields, pairs = batch.fields, pairs_of(batch.fields)
        said_RT = model(fields["inputs_RT"], pairs.positions_RT, fields["labels_RT"])
        counts_RT = (fields["labels_RT"] != IGNORED).float()
        number = len(fields["weights_E"])
        chosen_E, rejected_E, chosen_lengths_E, rejected_lengths_E = (
            sums_by_example(values_RT, whose_RT, number)
            for values_RT in (said_RT, counts_RT)
            for whose_RT in (pairs.chosen_RT, pairs.rejected_RT)
        )
        lengths = {"chosen_lengths_P": chosen_lengths_E, "rejected_lengths_P": rejected_lengths_E}
        loss = orpo_loss_sum(
            chosen_E, rejected_E, weights_P=fields["weights_E"], lam=self.odds_weight, **lengths
        )
        return loss, orpo_margins(chosen_E, rejected_E, **lengths)


class Reward(_Pairs):
    """`model` is a trainer.models RewardModel, perhaps inside an engine's wrapper."""

    def judged(self, model: torch.nn.Module, batch: ExampleBatch) -> Judged:
        fields, pairs = batch.fields, pairs_of(batch.fields)
        last_A = torch.cat([pairs.last_chosen_E, pairs.last_rejected_E])
        rewards_A = model(fields["inputs_RT"], pairs.positions_RT, last_A)
        chosen_E, rejected_E = rewards_A.double().chunk(2)
        loss = reward_loss_sum(chosen_E, rejected_E, weights_P=fields["weights_E"])
        return loss, chosen_E - rejected_E
