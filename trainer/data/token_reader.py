"""Rows of token stores -> TokenBatches: what a stream of text is made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from trainer.batch import TokenBatch
from trainer.data.order import Indices
from trainer.data.packing import Rows, RowSource, empty_rows, row_source
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.store import TokenStore
from trainer.errors import DataError
from trainer.records.token_store import Split

_Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # inputs, labels, positions


class TokenReader:
    """What stands behind `Stream` (see `Reader` there). Stores are token stores."""

    def __init__(self, sources: Sequence[StreamSource[TokenStore]], shape: RowShape) -> None:
        """Raises: DataError if the stores have several tokenizers or hold too little text."""
        self._shape = shape
        self._padding = _one_end_of_text(sources)
        self._rows = {
            "train": self._row_sources(sources, "train"),
            "held_out": self._row_sources(sources, "held_out"),
        }
        for source, found in zip(sources, self._rows["train"], strict=True):
            if found.num_rows == 0:
                raise DataError(
                    f"data source {source.name} has {source.store.train.num_tokens:,} tokens to "
                    "train on, not enough for one row; lower data.sequence_length or add text"
                )

    def num_rows(self, split: Split) -> list[int]:
        return [rows.num_rows for rows in self._rows[split]]

    def first_document(self, source: int, row: int) -> int:
        return self._rows["train"][source].first_document(row)

    def batches(
        self,
        split: Split,
        source_K: Indices,
        row_K: Indices,
        *,
        samples: Indices,
        sizes: Sequence[int],
    ) -> list[TokenBatch]:
        rows = self._gathered(source_K, row_K, self._rows[split])
        return self._cut(rows, samples, sizes=sizes)

    def _row_sources(
        self, sources: Sequence[StreamSource[TokenStore]], split: Split
    ) -> list[RowSource]:
        return [
            row_source(
                source.store.train if split == "train" else source.store.held_out,
                sequence_length=self._shape.sequence_length,
                packing=self._shape.packing,
                padding_id=self._padding,
            )
            for source in sources
        ]

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

    def _cut(self, rows: Rows, samples: Indices, *, sizes: Sequence[int]) -> list[TokenBatch]:
        """Cut gathered rows into micro-batches of b rows, of which `sizes` are real."""
        arrays = (rows.inputs_RT, rows.labels_RT, rows.positions_RT)
        inputs, labels, positions = (torch.split(torch.from_numpy(a), list(sizes)) for a in arrays)
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


def _one_end_of_text(sources: Sequence[StreamSource[TokenStore]]) -> int:
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
