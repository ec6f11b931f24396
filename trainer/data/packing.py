"""Rows of a split: which tokens a row holds, its labels, its positions.

Packed   row i holds tokens [i*T, i*T + T] of the concatenated split; positions restart at each
         document, and the last token of a document has no label.
Pieces   row i holds one piece of one document, padded with the end-of-text id; the padding has no
         label, and its positions go on, so causal attention never sees it from the text.

Shapes: R rows, T positions of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from trainer.batch import IGNORED
from trainer.data.order import Indices
from trainer.data.store import TokenSplit


@dataclass(frozen=True, eq=False)
class Rows:
    """Counts are per row: labels that are terms of the loss, and tokens that are not padding."""

    inputs_RT: Indices
    labels_RT: Indices
    positions_RT: Indices
    terms_R: Indices
    tokens_R: Indices


class RowSource(Protocol):
    @property
    def num_rows(self) -> int: ...
    def rows(self, index_R: Indices) -> Rows:
        """The rows with these indices, each in [0, num_rows)."""

    def first_document(self, row: int) -> int:
        """The index within the split of the document that the row begins in."""


class PackedRows:
    def __init__(self, split: TokenSplit, *, sequence_length: int) -> None:
        self._split = split
        self._length = sequence_length
        self.num_rows = max(0, (split.num_tokens - 1) // sequence_length)

    def rows(self, index_R: Indices) -> Rows:
        length, count = self._length, len(index_R)
        starts = index_R * length
        tokens = self._split.windows(starts, length + 1)
        inputs = tokens[:, :-1].astype(np.int64)
        labels = tokens[:, 1:].astype(np.int64)
        row, offset = self._split.document_starts(starts, length + 1)
        labels[row, offset - 1] = IGNORED
        return Rows(
            inputs,
            labels,
            _restarting(row[offset < length], offset[offset < length], (count, length)),
            length - np.bincount(row, minlength=count),
            np.full(count, length, dtype=np.int64),
        )

    def first_document(self, row: int) -> int:
        return self._split.document_number(row * self._length)


class PieceRows:
    """The index of pieces is made at first use: one pass over the document index."""

    def __init__(self, split: TokenSplit, *, sequence_length: int, padding_id: int) -> None:
        self._split = split
        self._length = sequence_length
        self._padding = padding_id

    @property
    def num_rows(self) -> int:
        return int(self._piece_ends[-1]) if len(self._piece_ends) else 0

    def rows(self, index_R: Indices) -> Rows:
        length = self._length
        document = np.searchsorted(self._piece_ends, index_R, side="right")
        piece = index_R - (self._piece_ends[document] - self._pieces[document])
        starts = self._starts[document] + piece * length
        ends = self._starts[document] + self._lengths[document]
        terms = np.minimum(length, ends - starts - 1)  # a token without successor predicts nothing
        # a window that would reach over the end of the split is moved back, and shifted after
        begins = np.minimum(starts, max(0, self._split.num_tokens - length - 1))
        width = min(length + 1, self._split.num_tokens)
        tokens = self._split.windows(begins, width).astype(np.int64)
        columns = np.arange(length)
        at = np.minimum((starts - begins)[:, None] + np.arange(length + 1), width - 1)
        tokens = np.take_along_axis(tokens, at, axis=1)
        outside = columns >= terms[:, None]
        inputs, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
        inputs[outside] = self._padding
        labels[outside] = IGNORED
        positions = np.broadcast_to(columns, inputs.shape).copy()
        return Rows(inputs, labels, positions, terms, terms)

    def first_document(self, row: int) -> int:
        return int(np.searchsorted(self._piece_ends, row, side="right"))

    @cached_property
    def _documents(self) -> tuple[Indices, Indices]:
        """(start in the split, tokens) of every document."""
        starts, before = [], 0
        for number in range(self._split.num_shards):
            starts.append(self._split.shard(number).document_starts_D + before)
            before += self._split.shard_record(number).num_tokens
        every = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
        return every, np.diff(every, append=before)

    @property
    def _starts(self) -> Indices:
        return self._documents[0]

    @property
    def _lengths(self) -> Indices:
        return self._documents[1]

    @cached_property
    def _pieces(self) -> Indices:
        return -(-(self._lengths - 1) // self._length)  # as many as cover all the predictions

    @cached_property
    def _piece_ends(self) -> Indices:
        return np.cumsum(self._pieces)


def row_source(
    split: TokenSplit, *, sequence_length: int, packing: bool, padding_id: int
) -> RowSource:
    if packing:
        return PackedRows(split, sequence_length=sequence_length)
    return PieceRows(split, sequence_length=sequence_length, padding_id=padding_id)


def empty_rows(count: int, *, sequence_length: int, padding_id: int) -> Rows:
    """Rows of weight zero: they run through the model and count for nothing."""
    shape = (count, sequence_length)
    positions = np.broadcast_to(np.arange(sequence_length, dtype=np.int64), shape).copy()
    none = np.zeros(count, dtype=np.int64)
    return Rows(
        np.full(shape, padding_id, dtype=np.int64),
        np.full(shape, IGNORED, dtype=np.int64),
        positions,
        none,
        none,
    )


def _restarting(
    row: npt.NDArray[np.intp] | Indices, offset: Indices, shape: tuple[int, int]
) -> Indices:
    """Positions of (R, T) that restart at column `offset` of row `row`, and at each row's start.

    `row` and `offset` are sorted together; offsets lie in [1, T).
    """
    count, length = shape
    if len(row) <= count:  # long documents: most rows have no restart, so mend those that have
        positions = np.empty(shape, dtype=np.int64)
        positions[:] = ramp = np.arange(length)
        for r, o in zip(row.tolist(), offset.tolist(), strict=True):
            positions[r, o:] = ramp[: length - o]  # a later restart of the row overwrites its part
        return positions
    flat = np.arange(count * length)
    cuts = np.sort(np.concatenate([flat[::length], row * length + offset]))
    since: Indices = flat - np.repeat(cuts, np.diff(cuts, append=len(flat)))
    return since.reshape(shape)
