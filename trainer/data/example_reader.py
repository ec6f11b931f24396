"""Rows of example stores -> ExampleBatches: examples laid one behind the other, and their fields.

Shapes: K rows asked for, E examples, N tokens of all of them; R, T, S as in trainer/batch.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from trainer.batch import IGNORED, ExampleBatch
from trainer.data.encodings.base import EXAMPLES, PLACES, TEXT
from trainer.data.example_store import ExampleSplit, ExampleStore, ramps
from trainer.data.order import Indices
from trainer.data.row_shape import RowShape, StreamSource
from trainer.errors import DataError
from trainer.records.example_store import Column, ExampleManifest
from trainer.records.token_store import Split

# A row is as long as its batch's longest, rounded up to this: what kernels like.
MULTIPLE = 8
_PREFIX = {"T": "", "S": "decoder_"}
_LETTERS = {"T": "RT", "S": "RS"}


@dataclass(frozen=True)
class _Chosen:
    """Examples of one source that a batch holds: their numbers, and their places in the batch."""

    split: ExampleSplit
    examples_N: Indices
    slots_N: Indices


class ExampleReader:
    """What stands behind `Stream` (see `Reader` there). Stores are example stores."""

    def __init__(self, sources: Sequence[StreamSource[ExampleStore]], shape: RowShape) -> None:
        """Raises: DataError if the stores do not fit each other, or one has no example."""
        self._shape = shape
        self._manifest = _one_kind(sources)
        self._splits: Mapping[str, list[ExampleSplit]] = {
            "train": [s.store.train for s in sources],
            "held_out": [s.store.held_out for s in sources],
        }

    def num_rows(self, split: Split) -> list[int]:
        return [found.num_rows for found in self._splits[split]]

    def first_document(self, source: int, row: int) -> int:
        examples, _ = self._splits["train"][source].examples_of(np.array([row], dtype=np.int64))
        return int(examples[0])

    def batches(
        self,
        split: Split,
        source_K: Indices,
        row_K: Indices,
        *,
        samples: Indices,
        sizes: Sequence[int],
    ) -> list[ExampleBatch]:
        made, begin = [], 0
        for size in sizes:
            at = slice(begin, begin + size)
            made.append(self._batch(split, source_K[at], row_K[at], samples=samples[at]))
            begin += size
        return made

    def _batch(
        self, split: Split, source_R: Indices, row_R: Indices, *, samples: Indices
    ) -> ExampleBatch:
        chosen, rows_E = self._chosen(split, source_R, row_R)
        fields: dict[str, npt.NDArray[Any]] = {}
        tokens = 0
        for axis in dict.fromkeys(c.axis for c in self._manifest.columns if c.axis in _LETTERS):
            tokens += self._lay_out(fields, axis, chosen, rows_E)
        for column in self._manifest.columns:
            if column.axis == "E" and column.name != PLACES.name:
                _of_examples(fields, column, chosen, num_examples=len(rows_E))
        fields["weights_E"] = np.zeros(max(1, len(rows_E)), dtype=np.float32)
        fields["weights_E"][: len(rows_E)] = 1.0
        return ExampleBatch(
            {name: torch.from_numpy(values) for name, values in fields.items()},
            tuple(samples.tolist()),
            self._terms(fields, num_examples=len(rows_E)),
            tokens,
            _texts(chosen, num_examples=len(rows_E)) if split == "held_out" else (),
        )

    def _chosen(
        self, split: Split, source_R: Indices, row_R: Indices
    ) -> tuple[list[_Chosen], Indices]:
        """(examples by source, row of each example of the batch)."""
        found, counts_R = [], np.zeros(len(row_R), dtype=np.int64)
        for number in np.unique(source_R).tolist():
            mine = np.flatnonzero(source_R == number)
            store = self._splits[split][number]
            examples_N, counts = store.examples_of(row_R[mine])
            counts_R[mine] = counts
            found.append((store, mine, examples_N))
        begins_R = np.cumsum(counts_R) - counts_R
        chosen = [
            _Chosen(
                store, examples_N, np.repeat(begins_R[mine], counts_R[mine]) + ramps(counts_R[mine])
            )
            for store, mine, examples_N in found
        ]
        return chosen, np.repeat(np.arange(len(row_R), dtype=np.int64), counts_R)

    def _lay_out(
        self,
        fields: dict[str, npt.NDArray[Any]],
        axis: str,
        chosen: Sequence[_Chosen],
        rows_E: Indices,
    ) -> int:
        """All columns of an axis, positions and documents with them; the number of tokens."""
        columns = [c for c in self._manifest.columns if c.axis == axis]
        lengths_E = np.zeros(len(rows_E), dtype=np.int64)
        values = []
        for part in chosen:
            found = [part.split.values(c.name, part.examples_N) for c in columns]
            lengths_E[part.slots_N] = found[0][1]
            values.append([v for v, _ in found])
        first_of_row_E = np.searchsorted(rows_E, rows_E)  # the number of the row's first example
        ends_E = np.cumsum(lengths_E)
        begins_E = ends_E - lengths_E
        begins_E = begins_E - (begins_E[first_of_row_E] if len(rows_E) else begins_E)
        width = self._width(int((begins_E + lengths_E).max()) if len(rows_E) else 0)
        first_E = rows_E * width + begins_E
        shape, letters, prefix = (
            (self._shape.micro_batch_size, width),
            _LETTERS[axis],
            _PREFIX[axis],
        )
        made = {c.name: np.full(shape, c.fill, dtype=_dtype(c)) for c in columns}
        made[f"{prefix}positions"] = np.zeros(shape, dtype=np.int64)
        made[f"{prefix}documents"] = np.zeros(shape, dtype=np.int64)
        documents_E = np.arange(len(rows_E)) - first_of_row_E + 1
        for part, found_values in zip(chosen, values, strict=True):
            lengths = lengths_E[part.slots_N]
            ramp = ramps(lengths)
            places = np.repeat(first_E[part.slots_N], lengths) + ramp
            for column, flat in zip(columns, found_values, strict=True):
                made[column.name].reshape(-1)[places] = flat
            made[f"{prefix}positions"].reshape(-1)[places] = ramp
            documents = np.repeat(documents_E[part.slots_N], lengths)
            made[f"{prefix}documents"].reshape(-1)[places] = documents
        fields.update({f"{name}_{letters}": array for name, array in made.items()})
        if axis == "T":
            fields["first_E"] = first_E if len(rows_E) else np.full(1, -1, dtype=np.int64)
        return int(lengths_E.sum())

    def _width(self, longest: int) -> int:
        """Positions of a batch's rows."""
        rounded = -(-max(longest, 1) // MULTIPLE) * MULTIPLE
        return max(longest, min(rounded, self._shape.sequence_length))

    def _terms(self, fields: Mapping[str, npt.NDArray[Any]], *, num_examples: int) -> float:
        """With weights of tokens: their sum; in fp64, so that how a step is cut up is no matter."""
        name = self._manifest.terms
        if name == EXAMPLES:
            return num_examples
        axis = next(c.axis for c in self._manifest.columns if c.name == name)
        weights = fields.get(f"weights_{_LETTERS[axis]}")
        if weights is not None:
            return float(weights.sum(dtype=np.float64))
        return int((fields[f"{name}_{_LETTERS[axis]}"] != IGNORED).sum())


def _dtype(column: Column) -> type[np.float32 | np.int64]:
    return np.float32 if column.dtype == "float32" else np.int64


def _of_examples(
    fields: dict[str, npt.NDArray[Any]],
    column: Column,
    chosen: Sequence[_Chosen],
    *,
    num_examples: int,
) -> None:
    made = np.full((max(1, num_examples), column.width), column.fill, dtype=_dtype(column))
    for part in chosen:
        values, _ = part.split.values(column.name, part.examples_N)
        made[part.slots_N] = values.reshape(-1, column.width)
    if column.dtype == "float32" or column.width > 1:
        fields[f"{column.name}_EC"] = made
    else:
        fields[f"{column.name}_E"] = made[:, 0].copy()


def _texts(chosen: Sequence[_Chosen], *, num_examples: int) -> tuple[Any, ...]:
    """What scores need beside the arrays; empty where no example has any."""
    found: list[Any] = [None] * num_examples
    for part in chosen:
        if not part.split.has(TEXT.name):
            return ()
        values, lengths = part.split.values(TEXT.name, part.examples_N)
        cuts = np.cumsum(lengths)[:-1]
        for slot, raw in zip(part.slots_N.tolist(), np.split(values, cuts), strict=True):
            found[slot] = json.loads(raw.tobytes())
    return tuple(found)


def _one_kind(sources: Sequence[StreamSource[ExampleStore]]) -> ExampleManifest:
    first = sources[0].store.manifest
    for source in sources:
        manifest = source.store.manifest
        if manifest.num_rows("train") == 0:
            raise DataError(
                f"data source {source.name} has no example to train on; add some, or lower "
                "data.held_out_fraction"
            )
        for name in ("tokenizer_digest", "labels", "columns", "task"):
            if getattr(manifest, name) != getattr(first, name):
                raise DataError(
                    f"the stores of {sources[0].name} and {source.name} differ in their "
                    f"{name.partition('_')[0]}; prepare them together with one data section"
                )
    return first
