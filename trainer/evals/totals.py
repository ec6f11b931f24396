"""What a task scores over all batches of all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from trainer.batch import Batch
from trainer.dist.world import World
from trainer.evals.whole_examples import best_parts
from trainer.tasks.base import Task
from trainer.tasks.parts import Part, ScoredInParts


@torch.no_grad()
def total_scores(
    world: World,
    task: Task,
    model: torch.nn.Module,
    batches: Iterable[Batch],
    *,
    device: torch.device,
) -> dict[str, float]:
    """Sums by name, the same on every rank. Collective.

    Floats are added, batch by batch: no logits outlive their batch. Of examples in parts a few
    numbers a part stay until all were seen.
    """
    sums: dict[str, float] = {}
    parts: list[Part] = []
    for batch in batches:
        moved = batch.to(device)
        if isinstance(task, ScoredInParts):
            found, of_batch = task.score_parts(model, moved)
            parts += of_batch
        else:
            found = task.score(model, moved)
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value
    if isinstance(task, ScoredInParts):
        best, left_out = best_parts(world, parts)
        sums |= task.sums_of_best(best, left_out=left_out)
    names = sorted(sums)
    return dict(zip(names, world.sum([sums[name] for name in names]), strict=True))
