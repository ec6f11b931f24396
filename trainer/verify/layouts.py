"""One run on many layouts: engine, ranks, accumulation, packing. All must train alike.

`run_layout` is what ranks do; `trainer/verify/compare.py` holds its results against an independent
loop. The settings are the user's own, shrunk (`launch/verify/shrink.py`).
"""

from __future__ import annotations

import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.build import build_job
from trainer.checkpoint.store import CheckpointStore
from trainer.config.sections.training import PlainEngine
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.loop import steps
from trainer.plan import RunPlan
from trainer.planning import make_plan
from trainer.records.run_files import RunFiles

EngineName = Literal["plain", "canonical", "zero0", "zero1", "zero2", "zero3"]


@dataclass(frozen=True)
class Layout:
    """How one step is cut up. `accumulation`: micro-steps of a step on every rank."""

    engine: EngineName
    world_size: int
    accumulation: int
    packing: bool

    @property
    def name(self) -> str:
        rows = "packed" if self.packing else "unpacked"
        return f"{self.engine}-w{self.world_size}-a{self.accumulation}-{rows}"


def as_json(layout: Layout) -> dict[str, Any]:
    return asdict(layout)


def plan_of(base: RunPlan, layout: Layout) -> RunPlan:
    """The base plan's settings cut up as `layout` says; the rows of a step stay the same.

    Raises: ValueError if the global batch cannot be cut into so many micro-steps.
    """
    config = base.config
    rows = config.batch.global_batch_size
    micro = -(-rows // (layout.world_size * layout.accumulation))
    if -(-rows // (layout.world_size * micro)) != layout.accumulation:
        raise ValueError(f"{rows} rows cannot be cut into {layout.accumulation} micro-steps")
    engine: Any = PlainEngine(kind="plain")
    if layout.engine == "canonical":
        engine = base.config.engine
    elif layout.engine != "plain":
        engine = base.config.engine.model_copy(update={"stage": int(layout.engine[-1])})
    changed = config.model_copy(
        update={
            "engine": engine,
            "batch": config.batch.model_copy(update={"micro_batch_size": micro}),
            "data": config.data.model_copy(update={"packing": layout.packing}),
            "resources": config.resources.model_copy(
                update={"nodes": 1, "ranks_per_node": layout.world_size}
            ),
        }
    )
    return make_plan(
        changed,
        attempt=base.attempt,
        run_id=base.run_id,
        stores=base.stores,
        device=base.device,
        cores=base.threads_per_rank * layout.world_size,
        vocab_size_of_tokenizer=base.vocab_size,
    )


def run_layout(world: World, base: RunPlan, layout: Layout, *, folder: Path) -> list[float]:
    """Train the whole plan on one layout; returns the loss of every step. Collective.

    The weights at the end lie in `folder/NAME` as a checkpoint, written by all ranks.
    """
    plan = plan_of(base, layout)
    run = RunFiles(folder / layout.name)
    job, state = build_job(plan, world, run=run, stop=threading.Event(), startup=StartUp())
    try:
        losses = [report.loss for report, _ in steps(job, state)]
        store = CheckpointStore(run.checkpoints, max_failed_saves=1)
        store.save(world, job.engine, step=len(losses), training={"losses": losses})
    finally:
        job.stream.close()
        job.engine.close()
    return losses
