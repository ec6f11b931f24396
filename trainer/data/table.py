"""The plan -> its prepared data: which store and which stream stand behind which kind of data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.config.sections.example_data import ExamplesSection
from trainer.config.sections.tasks import MaskedPairsTask
from trainer.data.changed_reader import Change, ChangedReader
from trainer.data.example_reader import ExampleReader
from trainer.data.example_store import ExampleStore
from trainer.data.pair_reader import PairReader
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.data.stream import Stream
from trainer.data.token_reader import TokenReader
from trainer.dist.world import World
from trainer.errors import DataError
from trainer.plan import RunPlan, StorePlan
from trainer.records.token_store import digests_of

Sources = Sequence[StreamSource[Any]]


def open_sources(plan: RunPlan) -> list[StreamSource[Any]]:
    """Raises: DataError if a store is gone, incomplete, or not the one that was planned."""
    return [
        StreamSource(planned.source, _opened(plan, planned), planned.weight)
        for planned in plan.stores
    ]


def open_stream(
    plan: RunPlan,
    world: World,
    *,
    sources: Sources,
    cursor: dict[str, Any] | None,
    change: Change | None = None,
) -> Stream[Any]:
    """`change`: what the task does to rows, see changed_reader.py.

    Raises: DataError if the stores do not fit each other, or hold too little.
    """
    config = plan.config
    shape = RowShape(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=config.batch.micro_batch_size,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
    )
    examples = isinstance(config.data, ExamplesSection)
    reader: Any
    if isinstance(config.task, MaskedPairsTask):
        reader = PairReader(sources, shape, seed=config.run.seed)
    else:
        reader = ExampleReader(sources, shape) if examples else TokenReader(sources, shape)
    if change is not None:
        reader = ChangedReader(reader, change)
    return Stream(
        sources,
        reader,
        shape=shape,
        seed=config.run.seed,
        rank=world.place.rank,
        world_size=world.place.world_size,
        prefetch_steps=config.data.prefetch_steps,
        cursor=cursor,
    )


def _opened(plan: RunPlan, planned: StorePlan) -> TokenStore | ExampleStore:
    folder = Path(planned.path)
    store: TokenStore | ExampleStore
    if isinstance(plan.config.data, ExamplesSection):
        store = ExampleStore.open(folder)
        digests: tuple[str, ...] = (store.manifest.content_digest,)
    else:
        store = TokenStore.open(folder)
        digests = digests_of(folder, store.manifest)
    if planned.manifest_digest not in digests:
        what = "example" if isinstance(store, ExampleStore) else "token"
        raise DataError(
            f"the {what} store {folder} is not the one this run was planned with, so its rows "
            "would come in another order; bring that one back or start another run"
        )
    return store
