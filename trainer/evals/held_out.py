"""How well the model predicts text it was not trained on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch

from trainer.batch import TokenBatch
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.reports import EvalReport
from trainer.tasks.base import Task


class HeldOut:
    """Loss, perplexity and token accuracy over `batches`, this rank's share of the held-out rows.

    Every rank has the same number of batches, because under ZeRO-3 all of them take part in each
    forward; batches beyond the rows have no terms. `reference` values are shown beside the result
    (the unigram entropy of the data, say).
    """

    def __init__(
        self,
        task: Task,
        batches: Sequence[TokenBatch],
        *,
        every: int,
        reference: dict[str, float],
    ) -> None:
        self._task = task
        self._batches = batches
        self._every = every
        self._reference = dict(reference)

    def due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        """Collective."""
        started = time.perf_counter()
        model = engine.model
        was_training = model.training
        model.eval()
        try:
            sums = self._local_sums(engine)
        finally:
            model.train(was_training)
        names = sorted(sums)
        totals = dict(zip(names, world.sum([sums[name] for name in names]), strict=True))
        return EvalReport(
            step=step,
            values=means(totals) | self._reference,
            seconds=time.perf_counter() - started,
        )

    @torch.no_grad()
    def _local_sums(self, engine: Engine) -> dict[str, float]:
        """Floats are added, batch by batch: no logits outlive their batch."""
        sums: dict[str, float] = {}
        for batch in self._batches:
            for name, value in self._task.score(engine.model, batch.to(engine.device)).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums


def means(totals: dict[str, float]) -> dict[str, float]:
    """From sums over all terms to values a term: loss, perplexity, token_accuracy, others by name.

    NaN where there was no term at all.
    """
    terms = totals.get("terms", 0.0)
    value = {k: v / terms if terms else math.nan for k, v in totals.items() if k != "terms"}
    named = {"loss": value.pop("loss", math.nan)}
    # exp overflows a float at 709; a loss like that is no model any more.
    named["perplexity"] = math.exp(min(named["loss"], 700.0))
    if "correct" in value:
        named["token_accuracy"] = value.pop("correct")
    return named | value
