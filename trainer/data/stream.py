"""A rank's endless source of micro-batches: a pure function of the step, read ahead by a thread.

    step s, row k of B  ->  sample cursor + k  ->  (source, local index)   mixture
                        ->  (epoch, row of the source)                     order
                        ->  a micro-batch of its kind                      a Reader

What rows are made of is the reader's: tokens of a corpus (token_reader.py) or labelled examples
(example_reader.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from trainer.batch import Batch, TokenBatch
from trainer.data.cursor import Cursor
from trainer.data.mixture import apportioned, mixture
from trainer.data.order import Indices, order_keys, permuted
from trainer.data.prefetch import Prefetch
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.data.token_reader import TokenReader
from trainer.records.token_store import Split

ORDER_ROWS = 4096  # rows whose order is computed at once: 0.3 us a row instead of 10
# Rows and tokens gathered at once, over several steps if they are small: 13 us a batch of 8 x 512
# instead of 80, for 3 MB of int64 rows.
GATHER_ROWS, GATHER_TOKENS = 256, 131_072
B = TypeVar("B", bound=Batch)


@dataclass(frozen=True)
class Place:
    """A row of a source, and the document (of its train split) that the row begins in."""

    source: str
    row: int
    first_document: int


class Reader(Protocol[B]):
    """Rows, by their number, of the stream's sources, by theirs."""

    def num_rows(self, split: Split) -> list[int]:
        """Of each source."""

    def first_document(self, source: int, row: int) -> int:
        """The number, within its train split, of the document or example that a row begins with."""

    def batches(
        self,
        split: Split,
        source_K: Indices,
        row_K: Indices,
        *,
        samples: Indices,
        sizes: Sequence[int],
    ) -> list[B]:
        """K rows, cut into micro-batches of b rows, of which `sizes` are real.

        Shapes: `samples` are global indices; K is the sum of `sizes`.
        """


class Stream(Generic[B]):
    """Units: steps count from 1. Constructed alike on all ranks but for `rank`."""

    def __init__(
        self,
        sources: Sequence[StreamSource[Any]],
        reader: Reader[B],
        *,
        shape: RowShape,
        seed: int,
        rank: int,
        world_size: int,
        prefetch_steps: int,
        cursor: dict[str, Any] | None = None,
    ) -> None:
        self._shape = shape
        self._sources = tuple(sources)
        self._reader = reader
        self._order = _Order(sources, reader.num_rows("train"), seed=seed)
        self.rank, self._world_size = rank, world_size
        self._rows_k = shape.rows_of(rank, world_size)
        self._cursor = Cursor.of(cursor)
        self._ordered: tuple[int, Indices, Indices, Indices] | None = None
        real_k = self._rows_k < shape.global_batch_size
        self._sizes = [int(n) for n in real_k.sum(axis=1)]  # real rows of each micro-step
        gather_rows = min(GATHER_ROWS, GATHER_TOKENS // shape.sequence_length)
        self._gather_steps = max(1, gather_rows // self._rows_k.size)
        self._prefetch = Prefetch(self._read, ahead=prefetch_steps) if prefetch_steps else None
        self._held: dict[int, list[B]] = {}

    def step(self, step: int) -> list[B]:
        """This rank's micro-batches of a step, in order.

        Raises: DataError if a shard that is touched for the first time is damaged.
        """
        if self._prefetch is not None:
            return self._prefetch.get(step)
        if step not in self._held:
            self._held = dict(enumerate(self._read(step), step))
        return self._held.pop(step)

    def cursor(self, step: int) -> dict[str, Any]:
        """Where the data stands after `step` steps; equal on all ranks."""
        batch = self._shape.global_batch_size
        return self._cursor.advanced(step, global_batch_size=batch).as_dict()

    def go_back(self, cursor: dict[str, Any], *, without: tuple[int, int]) -> None:
        """Stand where `cursor` says; the samples [start, stop) are never read again.

        Nor are those of earlier ways back, which a checkpoint from before them does not know.
        """
        spans = (*self._cursor.skipped, without)
        self._cursor = Cursor.of(cursor)
        for span in spans:
            self._cursor = self._cursor.skipping(*span)
        self._ordered, self._held = None, {}
        if self._prefetch is not None:
            # Its thread may be reading rows of the old order: it ends before anybody reads anew.
            ahead = self._prefetch.ahead
            self._prefetch.close()
            self._prefetch = Prefetch(self._read, ahead=ahead)

    def places(self, first: int, count: int) -> list[Place]:
        """Where the samples first, first + 1, ... come from, to show and to count."""
        sources, rows = self._order.locate(np.arange(first, first + count, dtype=np.int64))
        return [
            Place(self._sources[s].name, r, self._reader.first_document(s, r))
            for s, r in zip(sources.tolist(), rows.tolist(), strict=True)
        ]

    def close(self) -> None:
        if self._prefetch is not None:
            self._prefetch.close()

    def held_out_batches(self, rows: int) -> Iterator[B]:
        """This rank's part of the first `rows` evaluation rows: the same ones every time.

        All ranks get the same number of batches. A row is never repeated, so a small held-out
        split gives fewer rows; none at all gives no batch.
        """
        source_k, row_k = held_out_order(self._sources, self._reader.num_rows("held_out"), rows)
        shape = RowShape(
            global_batch_size=max(1, len(row_k)),
            micro_batch_size=self._shape.micro_batch_size,
            sequence_length=self._shape.sequence_length,
            packing=self._shape.packing,
        )
        if not len(row_k):
            return
        for chosen in shape.rows_of(self.rank, self._world_size):
            real = chosen[chosen < len(row_k)]
            yield self._reader.batches(
                "held_out", source_k[real], row_k[real], samples=real, sizes=[len(real)]
            )[0]

    def _read(self, first: int) -> list[list[B]]:
        """The micro-batches of some steps from `first` on, gathered in one go."""
        begin, samples_SK, source_SK, row_SK = self._ordered_from(first)
        at = slice(first - begin, first - begin + self._gather_steps)
        samples = samples_SK[at]
        batches = self._reader.batches(
            "train",
            source_SK[at].ravel(),
            row_SK[at].ravel(),
            samples=samples.ravel(),
            sizes=self._sizes * len(samples),
        )
        num_micro = len(self._sizes)
        return [batches[i : i + num_micro] for i in range(0, len(batches), num_micro)]

    def _ordered_from(self, step: int) -> tuple[int, Indices, Indices, Indices]:
        """(first step S0, samples, sources, rows) for a block of steps that holds `step`.

        Shapes: (steps, K) with K the rank's real rows of a step.
        """
        found = self._ordered
        if found is not None and found[0] <= step < found[0] + len(found[1]):
            return found
        rows_k = self._rows_k[self._rows_k < self._shape.global_batch_size]
        count = max(self._gather_steps, ORDER_ROWS // max(1, len(rows_k)))
        batch = self._shape.global_batch_size
        steps = np.arange(count, dtype=np.int64)[:, None] * batch
        samples = self._cursor.samples(step, global_batch_size=batch, rows=(steps + rows_k).ravel())
        source, row = self._order.locate(samples)
        shape = (count, len(rows_k))
        found = (step, samples.reshape(shape), source.reshape(shape), row.reshape(shape))
        self._ordered = found
        return found


class _Order:
    """Global sample index -> (source, row of that source)."""

    def __init__(
        self, sources: Sequence[StreamSource[Any]], num_rows: Sequence[int], *, seed: int
    ) -> None:
        self._num_rows = num_rows
        self._names = [source.name for source in sources]
        self._mixture = mixture([source.weight for source in sources])
        self._seed = seed

    def locate(self, samples: Indices) -> tuple[Indices, Indices]:
        source, local = self._mixture.locate(samples)
        row = np.empty_like(local)
        for number, num_rows in enumerate(self._num_rows):
            mine = np.flatnonzero(source == number)
            if len(mine) == 0:
                continue
            epochs, places = np.divmod(local[mine], num_rows)
            keys = order_keys(self._seed, self._names[number], epochs=epochs)
            row[mine] = permuted(places, num_rows, key=keys)
        return source, row


def held_out_order(
    sources: Sequence[StreamSource[Any]], num_rows: Sequence[int], rows: int
) -> tuple[Indices, Indices]:
    """(source, row) of the evaluation rows: by weight, spread over each split, never twice."""
    usable = [i for i, n in enumerate(num_rows) if n > 0]
    none = np.zeros(0, dtype=np.int64)
    if not usable or rows < 1:
        return none, none
    wanted = apportioned([sources[i].weight for i in usable], total=max(rows, len(usable)))
    source_parts, row_parts = [], []
    for number, count in zip(usable, wanted, strict=True):
        available = num_rows[number]
        places = np.arange(min(count, available), dtype=np.int64)
        keys = order_keys(0, sources[number].name, epochs=np.zeros(1, dtype=np.int64))
        row_parts.append(permuted(places, available, key=int(keys[0])))
        source_parts.append(np.full(len(places), number, dtype=np.int64))
    return np.concatenate(source_parts)[:rows], np.concatenate(row_parts)[:rows]


def token_stream(
    sources: Sequence[StreamSource[TokenStore]],
    *,
    shape: RowShape,
    seed: int,
    rank: int,
    world_size: int,
    prefetch_steps: int,
    cursor: dict[str, Any] | None = None,
) -> Stream[TokenBatch]:
    """Raises: DataError if the stores have several tokenizers or hold too little text."""
    return Stream(
        sources,
        TokenReader(sources, shape),
        shape=shape,
        seed=seed,
        rank=rank,
        world_size=world_size,
        prefetch_steps=prefetch_steps,
        cursor=cursor,
    )
