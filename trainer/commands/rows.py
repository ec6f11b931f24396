"""Held-out rows of a run's stores, for commands that work on one process."""

from __future__ import annotations

from trainer.batch import TokenBatch
from trainer.build import open_sources, open_stream
from trainer.dist.world import Alone
from trainer.plan import RunPlan


def held_out_rows(plan: RunPlan, rows: int) -> list[TokenBatch]:
    """The first `rows` of the run's held-out order, in micro-batches; fewer if there are fewer.

    Raises: DataError if a token store is gone or is not the one the run was planned with.
    """
    if rows < 1:
        return []
    stream = open_stream(plan, Alone(), sources=open_sources(plan), cursor=None)
    try:
        return list(stream.held_out_batches(rows))
    finally:
        stream.close()
