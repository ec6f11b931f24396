"""Rows of a run's stores, for commands that work on one process."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from trainer.batch import IGNORED, Batch, TokenBatch
from trainer.data.stream import Stream
from trainer.data.table import open_sources, open_stream
from trainer.dist.seeds import seed_of
from trainer.dist.world import Alone
from trainer.errors import DataError
from trainer.plan import RunPlan
from trainer.tasks.table import change_of


@dataclass(frozen=True)
class ChosenRows:
    """`what` they are, as it is told: "held-out rows"."""

    batches: tuple[Batch, ...]
    what: str


def held_out_rows(plan: RunPlan, rows: int) -> list[Batch]:
    """The first `rows` of the run's held-out order, in micro-batches; fewer if there are fewer.

    Raises: DataError if a token store is gone or is not the one the run was planned with.
    """
    if rows < 1:
        return []
    with closing(_stream(plan)) as stream:
        return list(stream.held_out_batches(rows))


def rows_to_compare(plan: RunPlan, rows: int) -> ChosenRows:
    """Rows on which two models are held against each other, which need not be new to them: at
    least one, if `rows` is. Held-out ones, else the first that were trained on, else drawn ones.
    """
    try:
        if held_out := held_out_rows(plan, rows):
            return ChosenRows(tuple(held_out), "held-out rows")
        return ChosenRows(_training_rows(plan, rows), "training rows (no text is held out)")
    except DataError:  # the store is gone, or is another one by now
        if plan.config.task.data == "examples":
            return ChosenRows((), "no rows (its example store cannot be read)")
        drawn = (_drawn_rows(plan, rows),) if rows > 0 else ()
        return ChosenRows(drawn, "rows of random tokens (its token store cannot be read)")


def _training_rows(plan: RunPlan, rows: int) -> tuple[Batch, ...]:
    if rows < 1:
        return ()
    found: list[Batch] = []
    with closing(_stream(plan)) as stream:
        for batch in stream.step(1):
            if sum(len(b.sample_indices) for b in found) < rows:
                found.append(batch)
    return tuple(found)


def _drawn_rows(plan: RunPlan, rows: int) -> TokenBatch:
    length = plan.config.data.sequence_length
    generator = torch.Generator().manual_seed(seed_of("compare", plan.config.run.seed))
    inputs_RT = torch.randint(plan.vocab_size, (rows, length), generator=generator)
    return TokenBatch(
        inputs_RT=inputs_RT,
        labels_RT=torch.full_like(inputs_RT, IGNORED),
        positions_RT=torch.arange(length).expand(rows, length),
        sample_indices=tuple(range(rows)),
        terms=0,
        tokens=inputs_RT.numel(),
    )


def _stream(plan: RunPlan) -> Stream[Any]:
    return open_stream(
        plan, Alone(), sources=open_sources(plan), cursor=None, change=change_of(plan)
    )
