"""Reads a token store: memory-mapped shards, sizes checked at open, checksums at first touch.

Nothing is copied until a row is gathered, and no row is ever made of a shard that was not verified.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from trainer.data.order import Indices
from trainer.errors import DataError
from trainer.records.store_lookup import misfits
from trainer.records.token_store import Shard, Split, StoreManifest, read_manifest

_SLAB_BYTES = 1 << 24


@dataclass(frozen=True, eq=False)
class MappedShard:
    """Shapes: N tokens, D documents."""

    tokens_N: npt.NDArray[Any]
    document_starts_D: Indices


class TokenStore:
    """One prepared store, opened for reading."""

    def __init__(self, path: Path, manifest: StoreManifest, *, verify: bool) -> None:
        self.path = path
        self.manifest = manifest
        self.train = TokenSplit(path, manifest, split="train", verify=verify)
        self.held_out = TokenSplit(path, manifest, split="held_out", verify=verify)

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> TokenStore:
        """Raises: DataError if it is not a complete store, or a file is missing or cut short.

        `verify=False` leaves out the checksums, for a corpus that was checked a moment ago.
        """
        manifest = read_manifest(path)
        for file, size, expected in misfits(path, manifest):
            what = "is missing" if size < 0 else f"has {size:,} bytes instead of {expected:,}"
            raise DataError(f"{file} {what}; {_mend(path)}")
        return cls(path, manifest, verify=verify)

    def verify(self) -> None:
        """Read every file against its checksum. Raises: DataError naming the file."""
        for split in (self.train, self.held_out):
            for number in range(split.num_shards):
                split.shard(number)


class TokenSplit:
    """The tokens of one split, concatenated over its shards; addressed by global token offset.

    Shapes: R windows, L tokens of a window.
    """

    def __init__(self, path: Path, manifest: StoreManifest, *, split: Split, verify: bool) -> None:
        self._path = path
        self._verify = verify
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._records = [s for s in manifest.shards if s.split == split]
        self._mapped: dict[int, MappedShard] = {}
        tokens = np.array([s.num_tokens for s in self._records], dtype=np.int64)
        self._ends = np.cumsum(tokens)
        self._begins = self._ends - tokens
        self.num_tokens = int(tokens.sum())
        self.num_documents = sum(s.num_documents for s in self._records)

    @property
    def num_shards(self) -> int:
        return len(self._records)

    def shard_record(self, number: int) -> Shard:
        return self._records[number]

    def shard(self, number: int) -> MappedShard:
        """Raises: DataError if its bytes are not those that were written."""
        found = self._mapped.get(number)
        if found is None:
            found = self._opened(self._records[number])
            self._mapped[number] = found
        return found

    def shard_of(self, offsets: Indices) -> tuple[Indices, Indices]:
        """(shard, offset within it) of each global token offset."""
        if len(self._records) == 1:
            return np.zeros_like(offsets), offsets
        shards = np.searchsorted(self._ends, offsets, side="right")
        return shards, offsets - self._begins[shards]

    def windows(self, starts_R: Indices, length: int) -> npt.NDArray[Any]:
        """Tokens [start, start + length) for each start: (R, L) of the store's own type."""
        if len(self._records) == 1:
            return _windows(self.shard(0).tokens_N, starts_R, length)
        shards, local = self.shard_of(starts_R)
        result = np.empty((len(starts_R), length), dtype=self._dtype)
        for number in np.unique(shards):
            rows = np.flatnonzero(shards == number)
            inside = local[rows] + length <= self._records[number].num_tokens
            whole = rows[inside]
            if len(whole):
                result[whole] = _windows(self.shard(int(number)).tokens_N, local[whole], length)
            for row in rows[~inside]:
                result[row] = self._across(int(number), int(local[row]), length)
        return result

    def document_starts(self, starts_R: Indices, length: int) -> tuple[Indices, Indices]:
        """(window, offset) of each document that begins inside a window, at an offset in [1, L).

        Sorted by window, then offset.
        """
        if len(self._records) == 1:
            return _starts_inside(self.shard(0).document_starts_D, starts_R, length)
        shards, local = self.shard_of(starts_R)
        windows, offsets = [], []
        for number in np.unique(shards):
            rows = np.flatnonzero(shards == number)
            index = self.shard(int(number)).document_starts_D
            found, at = _starts_inside(index, local[rows], length)
            windows.append(rows[found])
            offsets.append(at)
        for row in np.flatnonzero(starts_R + length > self._ends[shards]):
            at = self._starts_across(int(shards[row]), int(local[row]), length)
            windows.append(np.full(len(at), row, dtype=np.int64))
            offsets.append(at)
        order = np.lexsort((np.concatenate(offsets), np.concatenate(windows)))
        return np.concatenate(windows)[order], np.concatenate(offsets)[order]

    def document_number(self, offset: int) -> int:
        """The index within the split of the document that holds a token."""
        shard, local = (int(v[0]) for v in self.shard_of(np.array([offset], dtype=np.int64)))
        before = sum(s.num_documents for s in self._records[:shard])
        starts = self.shard(shard).document_starts_D
        return before + int(np.searchsorted(starts, local, side="right")) - 1

    def document_tokens(self, document: int) -> npt.NDArray[Any]:
        """The tokens of one document, end of text included."""
        for number, record in enumerate(self._records):
            if document < record.num_documents:
                shard = self.shard(number)
                begin = int(shard.document_starts_D[document])
                last = document + 1 == record.num_documents
                end = record.num_tokens if last else int(shard.document_starts_D[document + 1])
                return shard.tokens_N[begin:end]
            document -= record.num_documents
        raise IndexError(document)

    def documents(self) -> Iterator[npt.NDArray[Any]]:
        """The tokens of every document, in order."""
        for number, record in enumerate(self._records):
            shard = self.shard(number)
            starts = shard.document_starts_D.tolist()
            for begin, end in pairwise([*starts, record.num_tokens]):
                yield shard.tokens_N[begin:end]

    def _across(self, shard: int, begin: int, length: int) -> npt.NDArray[Any]:
        pieces = []
        while length > 0:
            tokens = self.shard(shard).tokens_N[begin : begin + length]
            pieces.append(tokens)
            length -= len(tokens)
            shard, begin = shard + 1, 0
        return np.concatenate(pieces)

    def _starts_across(self, shard: int, begin: int, length: int) -> Indices:
        """Offsets of the documents of the FOLLOWING shards that a window reaches into."""
        offset = self._records[shard].num_tokens - begin
        found = []
        while offset < length:
            shard += 1
            starts = self.shard(shard).document_starts_D
            stop = np.searchsorted(starts, length - offset)
            found.append(starts[:stop] + offset)
            offset += self._records[shard].num_tokens
        return np.concatenate(found)

    def _opened(self, record: Shard) -> MappedShard:
        tokens = self._map(f"{record.name}.tokens", self._dtype, record.tokens_crc)
        starts = self._map(f"{record.name}.documents", np.dtype("<u8"), record.documents_crc)
        return MappedShard(tokens, starts.view(np.int64))

    def _map(self, name: str, dtype: Any, crc: str) -> npt.NDArray[Any]:
        path = self._path / name
        expected = crc if self._verify else None
        return mapped_and_checked(path, dtype=dtype, crc=expected, mend=_mend(self._path))


def mapped_and_checked(path: Path, *, dtype: Any, crc: str | None, mend: str) -> npt.NDArray[Any]:
    """`crc` None: not checked. Raises: DataError, which ends with `mend`."""
    try:
        mapped = np.asarray(np.memmap(path, dtype=dtype, mode="r"))
    except (OSError, ValueError) as e:
        raise DataError(f"{path} cannot be read ({e}); {mend}") from e
    if crc is not None and _checksum(mapped) != crc:
        raise DataError(f"{path} is damaged: its checksum is not the manifest's; {mend}")
    return mapped


def _checksum(array: npt.NDArray[Any]) -> str:
    """crc32c as hex; 10 GB/s from the page cache, so the disk decides."""
    raw = array.view(np.uint8)
    crc = 0
    for begin in range(0, len(raw), _SLAB_BYTES):
        crc = google_crc32c.extend(crc, raw[begin : begin + _SLAB_BYTES].tobytes())
    return f"{crc:08x}"


def _mend(path: Path) -> str:
    return f"delete the folder {path}: the next start or `longhaul resume` prepares it again"


def _windows(tokens: npt.NDArray[Any], starts: Indices, length: int) -> npt.NDArray[Any]:
    # a strided view of every window there is: one gather copies whole rows, 3x as fast as an
    # index for each token
    stride = tokens.strides[0]
    every = np.lib.stride_tricks.as_strided(
        tokens, (len(tokens) - length + 1, length), (stride, stride), writeable=False
    )
    found: npt.NDArray[Any] = every[starts]
    return found


def _starts_inside(index: Indices, starts: Indices, length: int) -> tuple[Indices, Indices]:
    """Shapes: as TokenSplit.document_starts, of one shard."""
    first = np.searchsorted(index, starts, side="right")
    counts = np.searchsorted(index, starts + length, side="left") - first
    total = int(counts.sum())
    if total == 0:
        none = np.zeros(0, dtype=np.int64)
        return none, none
    windows = np.repeat(np.arange(len(starts)), counts)
    # positions in the index: first[w], first[w] + 1, ... for each window w
    ramp = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return windows, index[first[windows] + ramp] - starts[windows]
