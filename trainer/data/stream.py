"""A rank's endless source of micro-batches: a pure function of the step, read ahead by a thread.

    step s, row k of B  ->  sample cursor + k  ->  (source, local index)   mixture
                        ->  (epoch, row of the source)                     order
                        ->  tokens, labels, positions                      packing

Row k of a step sits at micro-step m, rank r, place j with k = (m*W + r)*b + j; rows with k >= B
exist only to make all ranks run alike, and weigh nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from trainer.batch import TokenBatch
from trainer.data.cursor import Cursor
from trainer.data.mixture import apportioned, mixture
from trainer.data.order import Indices, order_keys, permuted
from trainer.data.packing import Rows, RowSource, empty_rows, row_source
from trainer.data.prefetch import Prefetch
from trainer.data.store import TokenStore
from trainer.errors import DataError

ORDER_ROWS = 4096  # rows whose order is computed at once: 0.3 us a row instead of 10
# Rows and tokens gathered at once, over several steps if they are small: 13 us a batch of 8 x 512
# instead of 80, for 3 MB of int64 rows.
GATHER_ROWS, GATHER_TOKENS = 256, 131_072
_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, labels, positions


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """How a step is cut up. Units: rows; `sequence_length` tokens."""

    global_batch_size: int  # B
    micro_batch_size: int  # b
    sequence_length: int
    packing: bool

    def micro_steps(self, world_size: int) -> int:
        return -(-self.global_batch_size // (self.micro_batch_size * world_size))

    def rows_of(self, rank: int, world_size: int) -> Indices:
        """Row numbers k of this rank's micro-batches: (micro-steps, b), some >= B."""
        starts = (np.arange(self.micro_steps(world_size)) * world_size + rank)[:, None]
        return starts * self.micro_batch_size + np.arange(self.micro_batch_size)


@dataclass(frozen=True)
class StreamSource:
    """One store and its share. `name` decides the order: renaming a source reorders it."""

    name: str
    store: TokenStore
    weight: float


@dataclass(frozen=True)
class Place:
    """A row of a source, and the document (of its train split) that the row begins in."""

    source: str
    row: int
    first_document: int


class Stream:
    """Units: steps count from 1. Constructed alike on all ranks but for `rank`."""

    def __init__(
        self,
        sources: Sequence[StreamSource],
        *,
        shape: RowShape,
        seed: int,
        rank: int,
        world_size: int,
        prefetch_steps: int,
        cursor: dict[str, Any] | None = None,
    ) -> None:
        """Raises: DataError if the stores have several tokenizers or hold too little text."""
        self._shape = shape
        self._sources = tuple(sources)
        self._padding = _one_end_of_text(sources)
        self._order = _Order(sources, self._row_sources("train"), seed=seed)
        self._held_out_rows = self._row_sources("held_out")
        self.rank, self._world_size = rank, world_size
        self._rows_k = shape.rows_of(rank, world_size)
        self._cursor = Cursor.of(cursor)
        self._ordered: tuple[int, Indices, Indices, Indices] | None = None
        real_k = self._rows_k < shape.global_batch_size
        self._sizes = [int(n) for n in real_k.sum(axis=1)]  # real rows of each micro-step
        gather_rows = min(GATHER_ROWS, GATHER_TOKENS // shape.sequence_length)
        self._gather_steps = max(1, gather_rows // self._rows_k.size)
        self._prefetch = Prefetch(self._read, ahead=prefetch_steps) if prefetch_steps else None
        self._held: dict[int, list[TokenBatch]] = {}

    def step(self, step: int) -> list[TokenBatch]:
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
        """Stand where `cursor` says; the samples [start, stop) are never read again."""
        self._cursor = Cursor.of(cursor).skipping(*without)
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
            Place(self._sources[s].name, r, self._order.rows[s].first_document(r))
            for s, r in zip(sources.tolist(), rows.tolist(), strict=True)
        ]

    def close(self) -> None:
        if self._prefetch is not None:
            self._prefetch.close()

    def held_out_batches(self, rows: int) -> Iterator[TokenBatch]:
        """This rank's part of the first `rows` evaluation rows: the same ones every time.

        All ranks get the same number of batches. A row is never repeated, so a small held-out
        split gives fewer rows; none at all gives no batch.
        """
        source_k, row_k = _held_out_order(self._sources, self._held_out_rows, rows)
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
            gathered = self._gathered(source_k[real], row_k[real], self._held_out_rows)
            yield self._batches(gathered, real, sizes=[len(real)])[0]

    def _row_sources(self, split: str) -> list[RowSource]:
        return [
            row_source(
                source.store.train if split == "train" else source.store.held_out,
                sequence_length=self._shape.sequence_length,
                packing=self._shape.packing,
                padding_id=self._padding,
            )
            for source in self._sources
        ]

    def _read(self, first: int) -> list[list[TokenBatch]]:
        """The micro-batches of some steps from `first` on, gathered in one go."""
        begin, samples_SK, source_SK, row_SK = self._ordered_from(first)
        at = slice(first - begin, first - begin + self._gather_steps)
        samples = samples_SK[at]
        gathered = self._gathered(source_SK[at].ravel(), row_SK[at].ravel(), self._order.rows)
        batches = self._batches(gathered, samples.ravel(), sizes=self._sizes * len(samples))
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

    def _gathered(
        self, source_K: Indices, row_K: Indices, row_sources: Sequence[RowSource]
    ) -> Rows:
        if len(row_sources) == 1:
            return row_sources[0].rows(row_K)
        parts, places = [], []
        for number, rows in enumerate(row_sources):
            mine = np.flatnonzero(source_K == number)
            if len(mine):
                parts.append(rows.rows(row_K[mine]))
                places.append(mine)
        if not parts:
            return empty_rows(0, sequence_length=self._shape.sequence_length, padding_id=0)
        back = np.argsort(np.concatenate(places))
        return _joined(parts, back)

    def _batches(self, rows: Rows, samples: Indices, *, sizes: list[int]) -> list[TokenBatch]:
        """Cut gathered rows into micro-batches of b rows, of which `sizes` are real."""
        arrays = (rows.inputs_RT, rows.labels_RT, rows.positions_RT)
        inputs, labels, positions = (torch.split(torch.from_numpy(a), sizes) for a in arrays)
        ends = list(accumulate(sizes))
        indices = samples.tolist()
        # sums of each micro-batch, as differences of running sums: one call for all of them
        terms, tokens = ([0, *n.cumsum().tolist()] for n in (rows.terms_R, rows.tokens_R))
        batches = []
        for number, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            begin = end - size
            tensors = (inputs[number], labels[number], positions[number])
            if size < self._shape.micro_batch_size:
                tensors = self._padded(tensors, missing=self._shape.micro_batch_size - size)
            batches.append(
                TokenBatch(
                    *tensors,
                    tuple(indices[begin:end]),
                    terms[end] - terms[begin],
                    tokens[end] - tokens[begin],
                )
            )
        return batches

    def _padded(self, parts: _Three, *, missing: int) -> _Three:
        length = self._shape.sequence_length
        empty = empty_rows(missing, sequence_length=length, padding_id=self._padding)
        return (
            torch.cat([parts[0], torch.from_numpy(empty.inputs_RT)]),
            torch.cat([parts[1], torch.from_numpy(empty.labels_RT)]),
            torch.cat([parts[2], torch.from_numpy(empty.positions_RT)]),
        )


class _Order:
    """Global sample index -> (source, row of that source)."""

    def __init__(
        self, sources: Sequence[StreamSource], rows: Sequence[RowSource], *, seed: int
    ) -> None:
        for source, found in zip(sources, rows, strict=True):
            if found.num_rows == 0:
                raise DataError(
                    f"data source {source.name} has {source.store.train.num_tokens:,} tokens to "
                    "train on, not enough for one row; lower data.sequence_length or add text"
                )
        self.rows = rows
        self._names = [source.name for source in sources]
        self._mixture = mixture([source.weight for source in sources])
        self._seed = seed

    def locate(self, samples: Indices) -> tuple[Indices, Indices]:
        source, local = self._mixture.locate(samples)
        row = np.empty_like(local)
        for number, rows in enumerate(self.rows):
            mine = np.flatnonzero(source == number)
            if len(mine) == 0:
                continue
            epochs, places = np.divmod(local[mine], rows.num_rows)
            keys = order_keys(self._seed, self._names[number], epochs=epochs)
            row[mine] = permuted(places, rows.num_rows, key=keys)
        return source, row


def _held_out_order(
    sources: Sequence[StreamSource], row_sources: Sequence[RowSource], rows: int
) -> tuple[Indices, Indices]:
    """(source, row) of the evaluation rows: by weight, spread over each split, never twice."""
    usable = [i for i, r in enumerate(row_sources) if r.num_rows > 0]
    none = np.zeros(0, dtype=np.int64)
    if not usable or rows < 1:
        return none, none
    wanted = apportioned([sources[i].weight for i in usable], total=max(rows, len(usable)))
    source_parts, row_parts = [], []
    for number, count in zip(usable, wanted, strict=True):
        available = row_sources[number].num_rows
        places = np.arange(min(count, available), dtype=np.int64)
        keys = order_keys(0, sources[number].name, epochs=np.zeros(1, dtype=np.int64))
        row_parts.append(permuted(places, available, key=int(keys[0])))
        source_parts.append(np.full(len(places), number, dtype=np.int64))
    return np.concatenate(source_parts)[:rows], np.concatenate(row_parts)[:rows]


def _one_end_of_text(sources: Sequence[StreamSource]) -> int:
    digests = {s.store.manifest.tokenizer_digest: s for s in sources}
    if len(digests) > 1:
        names = " and ".join(s.name for s in digests.values())
        raise DataError(
            f"the stores of {names} were made with different tokenizers; "
            "prepare them together with one data.tokenizer"
        )
    return sources[0].store.manifest.end_of_text_id


def _joined(parts: Sequence[Rows], order: Any) -> Rows:
    return Rows(
        np.concatenate([p.inputs_RT for p in parts])[order],
        np.concatenate([p.labels_RT for p in parts])[order],
        np.concatenate([p.positions_RT for p in parts])[order],
        np.concatenate([p.terms_R for p in parts])[order],
        np.concatenate([p.tokens_R for p in parts])[order],
    )
