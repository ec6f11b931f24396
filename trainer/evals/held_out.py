"""How well the model does on rows it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from trainer.batch import Batch
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.reports import EvalReport
from trainer.tasks.base import Task, values_of


class HeldOut:
    """What the task scores, over `batches`, this rank's share of the held-out rows.

    Every rank has the same number of batches, because under ZeRO-3 all of them take part in each
    forward; batches beyond the rows have no terms. `reference` values are shown beside the result
    (the unigram entropy of the data, say).
    """

    def __init__(
        self,
        task: Task,
        batches: Sequence[Batch],
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
            values=values_of(self._task, totals) | self._reference,
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
