"""What a task is: it turns a micro-batch into a sum of losses over terms, and scores answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from trainer.batch import IGNORED, ExampleBatch


class Task(Protocol):
    """Pure: no state, no collectives, no knowledge of ranks or steps.

    `batch` is what the task's data gives: a TokenBatch of text, an ExampleBatch of examples.
    """

    def loss_sum(self, model: torch.nn.Module, batch: Any) -> torch.Tensor:
        """The sum of the losses of the batch's terms: a scalar with gradient, fp64 if it can.

        A batch without terms still runs the model (ZeRO-3 gathers on all ranks) and gives 0.
        """

    def score(self, model: torch.nn.Module, batch: Any) -> dict[str, float]:
        """Sums that add up over batches and ranks; always holds "terms" and "loss".

        The names never depend on the batch: all ranks add up the same ones.
        """

    def values(self, sums: Mapping[str, float]) -> dict[str, float]:
        """From the sums over all batches and ranks to what people read; "loss" comes first."""


def terms_scored(batch: ExampleBatch) -> float:
    """Of labelled tokens: scores count each as one, whatever it weighs in training."""
    if "weights_RT" in batch.fields or "weights_RS" in batch.fields:
        labels = batch.fields["labels_RT" if "weights_RT" in batch.fields else "labels_RS"]
        return float((labels != IGNORED).sum())
    return float(batch.terms)


def values_of(task: Any, sums: Mapping[str, float]) -> dict[str, float]:
    """A user's own task may leave `values` out: its sums are then divided by the terms."""
    named = getattr(task, "values", None)
    return means(sums) if named is None else named(sums)


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """From sums over all terms to values a term: loss, perplexity, token_accuracy, others by name.

    NaN where there was no term at all.
    """
    terms = sums.get("terms", 0.0)
    value = {k: v / terms if terms else math.nan for k, v in sums.items() if k != "terms"}
    named = {"loss": value.pop("loss", math.nan)}
    # exp overflows a float at 709; a loss like that is no model any more.
    named["perplexity"] = math.exp(min(named["loss"], 700.0))
    if "correct" in value:
        named["token_accuracy"] = value.pop("correct")
    return named | value
