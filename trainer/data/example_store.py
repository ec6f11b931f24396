"""Reads an example store: memory-mapped columns, sizes checked at open, checksums at first touch.

Shapes: N examples asked for, V values of a column, all of them one behind the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.data.order import Indices
from trainer.data.store import mapped_and_checked
from trainer.errors import DataError
from trainer.records.example_lookup import example_misfits
from trainer.records.example_store import (
    Column,
    ExampleManifest,
    ExampleShard,
    StoredFile,
    read_example_manifest,
)
from trainer.records.token_store import Split

Values = npt.NDArray[Any]


class ExampleStore:
    """One prepared store, opened for reading."""

    def __init__(self, path: Path, manifest: ExampleManifest) -> None:
        self.path = path
        self.manifest = manifest
        self.train = ExampleSplit(path, manifest, split="train")
        self.held_out = ExampleSplit(path, manifest, split="held_out")

    @classmethod
    def open(cls, path: Path) -> ExampleStore:
        """Raises: DataError if it is not a complete store, or a file is missing or cut short."""
        manifest = read_example_manifest(path)
        for file, size, expected in example_misfits(path):
            what = "is missing" if size < 0 else f"has {size:,} bytes instead of {expected:,}"
            raise DataError(f"{file} {what}; {_mend(path)}")
        return cls(path, manifest)

    def verify(self) -> None:
        """Read every file against its checksum. Raises: DataError naming the file."""
        for split in (self.train, self.held_out):
            split.verify()


@dataclass(frozen=True)
class _Shard:
    """Columns by name, ends by the name of their file."""

    values: dict[str, Values]
    ends: dict[str, Indices]


class ExampleSplit:
    """The examples of one split, numbered over its shards, and its rows."""

    def __init__(self, path: Path, manifest: ExampleManifest, *, split: Split) -> None:
        self._path = path
        self._split: Split = split
        self._columns = {column.name: column for column in manifest.columns}
        self._records = [s for s in manifest.shards if s.split == split]
        self._mapped: dict[int, _Shard] = {}
        counts = np.array([s.num_examples for s in self._records], dtype=np.int64)
        self._ends = np.cumsum(counts)
        self._begins = self._ends - counts
        self._rows = next((r for r in manifest.rows if r.split == split), None)
        self._index: tuple[Indices, Indices] | None = None
        self.num_examples = int(counts.sum())
        self.num_rows = manifest.num_rows(split)

    def has(self, column: str) -> bool:
        return column in self._columns

    def examples_of(self, rows_K: Indices) -> tuple[Indices, Indices]:
        """(examples in the order of the rows, how many each row has)."""
        if self._rows is None:
            return rows_K, np.ones(len(rows_K), dtype=np.int64)
        numbers, ends = self._row_index(self._rows.files)
        begins = np.where(rows_K > 0, ends[rows_K - 1], 0)
        counts = ends[rows_K] - begins
        return numbers[np.repeat(begins, counts) + ramps(counts)], counts

    def values(self, name: str, examples_N: Indices) -> tuple[Values, Indices]:
        """(values of a column, as its axis says how many of each example; how many each has)."""
        column = self._columns[name]
        shard_N, local_N = self._located(examples_N)
        lengths_N = np.empty(len(examples_N), dtype=np.int64)
        parts: list[tuple[Indices, Values]] = []
        for number in np.unique(shard_N).tolist():
            mine = np.flatnonzero(shard_N == number)
            found, lengths = _gathered(self._shard(number), column, local_N[mine])
            lengths_N[mine] = lengths
            parts.append((mine, found))
        if len(parts) == 1:
            return parts[0][1], lengths_N
        begins_N = np.cumsum(lengths_N) - lengths_N
        values = np.empty(int(lengths_N.sum()), dtype=np.dtype(column.dtype))
        for mine, found in parts:
            lengths = lengths_N[mine]
            values[np.repeat(begins_N[mine], lengths) + ramps(lengths)] = found
        return values, lengths_N

    def lengths(self, ends: str) -> Indices:
        """Of every example along an axis, or of an aside: one pass, for whoever makes rows."""
        found = [np.diff(self._shard(i).ends[ends], prepend=0) for i in range(len(self._records))]
        return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)

    def row_lengths(self) -> Indices:
        """What each example takes of a row: its length along the axis where that is largest, so
        that no row of either is longer than `row_tokens`.
        """
        axes = dict.fromkeys(c.axis for c in self._columns.values() if c.axis in ("T", "S"))
        longest: Indices = np.maximum.reduce([self.lengths(axis) for axis in axes])
        return longest

    def verify(self) -> None:
        for number in range(len(self._records)):
            self._shard(number)
        if self._rows is not None:
            self._row_index(self._rows.files)

    def _located(self, examples_N: Indices) -> tuple[Indices, Indices]:
        if len(self._records) == 1:
            return np.zeros_like(examples_N), examples_N
        shards = np.searchsorted(self._ends, examples_N, side="right")
        return shards, examples_N - self._begins[shards]

    def _shard(self, number: int) -> _Shard:
        found = self._mapped.get(number)
        if found is None:
            found = self._opened(self._records[number])
            self._mapped[number] = found
        return found

    def _opened(self, record: ExampleShard) -> _Shard:
        """Raises: DataError if its bytes are not those that were written."""
        values, ends = {}, {}
        for file in record.files:
            if file.suffix.endswith(".ends"):
                ends[file.suffix.removesuffix(".ends")] = self._numbers(record.name, file)
            else:
                dtype = np.dtype(self._columns[file.suffix].dtype).newbyteorder("<")
                values[file.suffix] = self._map(record.name, file, dtype)
        return _Shard(values, ends)

    def _row_index(self, files: tuple[StoredFile, ...]) -> tuple[Indices, Indices]:
        if self._index is None:
            found = {file.suffix: self._numbers(self._split, file) for file in files}
            none = np.zeros(0, dtype=np.int64)
            self._index = (found.get("rows", none), found.get("row_ends", none))
        return self._index

    def _numbers(self, stem: str, file: StoredFile) -> Indices:
        return self._map(stem, file, np.dtype("<u8")).view(np.int64)

    def _map(self, stem: str, file: StoredFile, dtype: Any) -> Values:
        if not file.size:
            return np.zeros(0, dtype=dtype)
        path = self._path / f"{stem}.{file.suffix}"
        return mapped_and_checked(path, dtype=dtype, crc=file.crc, mend=_mend(self._path))


def ramps(lengths: Indices) -> Indices:
    """0, 1, ..., length - 1 for each length, one behind the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    found: Indices = np.arange(total, dtype=np.int64) - np.repeat(ends - lengths, lengths)
    return found


def _gathered(shard: _Shard, column: Column, local_N: Indices) -> tuple[Values, Indices]:
    values = shard.values[column.name]
    if column.ends is None:
        lengths = np.full(len(local_N), column.width, dtype=np.int64)
        begins = local_N * column.width
    else:
        ends = shard.ends[column.ends]
        begins = np.where(local_N > 0, ends[local_N - 1], 0)
        lengths = ends[local_N] - begins
    return values[np.repeat(begins, lengths) + ramps(lengths)], lengths


def _mend(path: Path) -> str:
    return f"delete the folder {path}: the next start or `longhaul resume` prepares it again"
