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
GATHER_ROWS = 64  # rows that are gathered at once, over several steps if they are short


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
        self._rank, self._world_size = rank, world_size
        self._rows_k = shape.rows_of(rank, world_size)
        self._cursor = Cursor.of(cursor)
        self._ordered: tuple[int, Indices, Indices, Indices] | None = None
        per_step = self._rows_k.size
        self._gather_steps = max(1, GATHER_ROWS // per_step)
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
        for chosen in shape.rows_of(self._rank, self._world_size):
            real = chosen[chosen < len(row_k)]
            gathered = self._gathered(source_k[real], row_k[real], self._held_out_rows)
            yield self._batches(gathered, [real], micro_batches=1)[0]

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
        num_micro = len(self._rows_k)
        real_k = self._rows_k < self._shape.global_batch_size
        splits = [len(real) for real in (row[r] for row, r in zip(self._rows_k, real_k, strict=True))]
        cuts = np.cumsum(splits)[:-1]
        indices = [part for step in samples for part in np.split(step, cuts)]
        batches = self._batches(gathered, indices, micro_batches=num_micro)
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
        samples = self._cursor.samples(
            step, global_batch_size=batch, rows=(steps + rows_k).ravel()
        )
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

    def _batches(
        self, rows: Rows, indices: Sequence[Indices], *, micro_batches: int
    ) -> list[TokenBatch]:
        """Cut gathered rows into micro-batches of b rows; `indices` has the samples of each."""
        size, begin, batches = self._shape.micro_batch_size, 0, []
        whole = [torch.from_numpy(a) for a in (rows.inputs_RT, rows.labels_RT, rows.positions_RT)]
        terms, tokens = rows.terms_R, rows.tokens_R
        for samples in indices:
            end = begin + len(samples)
            parts = [t[begin:end] for t in whole]
            if len(samples) < size:
                parts = self._padded(parts, missing=size - len(samples))
            batches.append(
                TokenBatch(
                    parts[0],
                    parts[1],
                    parts[2],
                    tuple(samples.tolist()),
                    int(terms[begin:end].sum()),
                    int(tokens[begin:end].sum()),
                )
            )
            begin = end
        return batches

    def _padded(self, parts: list[torch.Tensor], *, missing: int) -> list[torch.Tensor]:
        length = self._shape.sequence_length
        empty = empty_rows(missing, sequence_length=length, padding_id=self._padding)
        more = (empty.inputs_RT, empty.labels_RT, empty.positions_RT)
        return [torch.cat([p, torch.from_numpy(m)]) for p, m in zip(parts, more, strict=True)]


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
