"""The examples of one row of training, as the model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.schema import Config
from trainer.data.audit_show import shown
from trainer.data.audit_stores import examples_at
from trainer.data.encodings.base import EXAMPLES
from trainer.data.example_reader import ExampleReader
from trainer.data.example_store import ExampleStore
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.stream import Stream
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.plan import StorePlan


@dataclass(frozen=True)
class ShownExamples:
    """`examples`: a text each, what is learnt coloured or in >>...<<; `length` tokens in all."""

    sample: int
    source: str
    row: int
    length: int
    examples: tuple[str, ...]


def shown_examples(
    config: Config, stores: Sequence[StorePlan], *, sample: int, colour: bool
) -> ShownExamples:
    """The row of a global sample index. Raises: DataError as Stream does."""
    opened = [ExampleStore.open(Path(s.path)) for s in stores]
    sources = [
        StreamSource(s.source, store, s.weight) for s, store in zip(stores, opened, strict=True)
    ]
    shape = RowShape(
        global_batch_size=config.batch.global_batch_size,
        micro_batch_size=1,
        sequence_length=config.data.sequence_length,
        packing=config.data.packing,
    )
    stream = Stream(
        sources,
        ExampleReader(sources, shape),
        shape=shape,
        seed=config.run.seed,
        rank=0,
        world_size=1,
        prefetch_steps=0,
        cursor=None,
    )
    with closing(stream):
        place = stream.places(sample, 1)[0]
    store = next(s.store for s in sources if s.name == place.source)
    numbers, _ = store.train.examples_of(np.array([place.row], dtype=np.int64))
    found = list(examples_at(store, store.train, numbers))
    manifest, tokenizer = store.manifest, TaskTokenizer.open(store.path)
    speaks = manifest.terms != EXAMPLES and not manifest.labels
    texts = [
        shown(one, tokenizer, labels=manifest.labels, speaks=speaks, colour=colour) for one in found
    ]
    length = sum(one.length for one in found)
    return ShownExamples(sample, place.source, place.row, length, tuple(texts))
