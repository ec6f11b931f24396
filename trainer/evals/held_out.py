"""How well the model does on rows it was not trained on."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext

from trainer.batch import Batch
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.evals.totals import total_scores
from trainer.reports import EvalReport
from trainer.tasks.base import Task, values_of


class HeldOut:
    """What the task scores, over `batches`, this rank's share of the held-out rows.

    Every rank has the same number of batches, because under ZeRO-3 all of them take part in each
    forward; batches beyond the rows have no terms. `reference` values are shown beside the result
    (the unigram entropy of the data, say). `average`: of the weights is what is looked at.
    """

    def __init__(
        self,
        task: Task,
        batches: Sequence[Batch],
        *,
        every: int,
        reference: dict[str, float],
        average: bool = False,
    ) -> None:
        self._task = task
        self._batches = batches
        self._every = every
        self._reference = dict(reference)
        self._average = average

    def due(self, step: int) -> bool:
        return self._every > 0 and step % self._every == 0

    def names(self, world: World, engine: Engine) -> tuple[str, ...]:
        """Of the values it reports, from one batch. Collective."""
        return tuple(self._values(world, engine, self._batches[:1]))

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        """Collective."""
        started = time.perf_counter()
        values = self._values(world, engine, self._batches)
        return EvalReport(step=step, values=values, seconds=time.perf_counter() - started)

    def _values(self, world: World, engine: Engine, batches: Sequence[Batch]) -> dict[str, float]:
        model = engine.model
        was_training = model.training
        model.eval()
        try:
            with engine.averaged() if self._average else nullcontext():
                totals = total_scores(world, self._task, model, batches, device=engine.device)
        finally:
            model.train(was_training)
        return values_of(self._task, totals) | self._reference
