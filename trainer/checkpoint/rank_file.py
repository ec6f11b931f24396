"""Reading one rank's file: no byte of it is handed out before its chunk's checksum was right."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from trainer.checkpoint.checksum import ALGORITHMS
from trainer.checkpoint.folder import read_failure
from trainer.checkpoint.format import HEADER_LIMIT_BYTES, Header, Identity, decode_header, digest_of
from trainer.errors import DamagedCheckpoint
from trainer.records.manifest import Manifest
from trainer.storage.local import Bytes, Storage, StoredFile

_READ_BYTES = 4 << 20  # checked while it is in the cache
_SMALL_BYTES = 256 << 10  # a copy costs less than a call of its own; far less than a request


class ChunkCache:
    """The chunks that ranges begin and end in; the next range usually needs the same one."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._held = 0
        self._chunks: OrderedDict[tuple[str, int], Bytes] = OrderedDict()

    def get(self, file: str, chunk: int) -> Bytes | None:
        found = self._chunks.get((file, chunk))
        if found is not None:
            self._chunks.move_to_end((file, chunk))
        return found

    def put(self, file: str, chunk: int, data: Bytes) -> None:
        self._chunks[file, chunk] = data
        self._held += len(data)
        while self._held > self._limit and len(self._chunks) > 1:
            _, dropped = self._chunks.popitem(last=False)
            self._held -= len(dropped)


class OpenRankFile:
    """A rank's file whose header matched the manifest.

    Raises (everywhere): DamagedCheckpoint naming the file and the chunk; CheckpointError where
    the storage refuses for a reason of its own.
    """

    def __init__(
        self, storage: Storage, folder: Path, manifest: Manifest, rank: int, *, cache: ChunkCache
    ) -> None:
        self.entry = manifest.files[rank]
        self._storage = storage
        self._path = folder / self.entry.name
        self._cache = cache
        self._file: StoredFile | None = None
        try:
            self.header = self._checked_header(Identity(manifest.step, rank, manifest.world_size))
        except BaseException:
            self.close()
            raise
        self._checksum = ALGORITHMS[self.header.algorithm]

    def read(self, offset: int, out: Bytes) -> None:
        """Fill `out` with the data's bytes from `offset`."""
        size = self.header.chunk_bytes
        done = 0
        while done < len(out):
            chunk, inside = divmod(offset + done, size)
            whole = (len(out) - done) // size if inside == 0 else 0
            if whole:
                take = min(whole, max(1, _READ_BYTES // size)) * size
                self._read_whole_chunks(chunk, out[done : done + take])
            else:
                data = self._partly_needed(chunk)
                take = min(len(data) - inside, len(out) - done)
                out[done : done + take] = data[inside : inside + take]
            done += take

    def verify(self) -> None:
        """Check every chunk."""
        size, total = self.header.chunk_bytes, self.header.data_bytes
        step = max(1, _READ_BYTES // size) * size
        buffer = np.empty(min(step, total), dtype=np.uint8)
        for offset in range(0, total, step):
            self._read_whole_chunks(offset // size, buffer[: min(step, total - offset)])

    def open(self) -> None:
        """Take the descriptor now; after that, threads may `read_chunks` at once."""
        self._opened()

    def read_chunks(self, first: int, parts: Sequence[Bytes]) -> None:
        """Read whole chunks from `first` on, in order, into `parts`. They are not checked yet."""
        offset = self.header.data_start + first * self.header.chunk_bytes
        for together in _grouped(parts):
            if len(together) == 1:
                self._read_bytes(offset, together[0])
                offset += len(together[0])
                continue
            room = np.empty(sum(map(len, together)), dtype=np.uint8)
            self._read_bytes(offset, room)
            offset += len(room)
            at = 0
            for part in together:
                part[:] = room[at : at + len(part)]
                at += len(part)

    def check_chunks(self, first: int, parts: Sequence[Bytes]) -> None:
        """Whether what `read_chunks` brought is what was written."""
        size = self.header.chunk_bytes
        number, found, filled = first, 0, 0
        for part in parts:
            at = 0
            while at < len(part):
                take = min(size - filled, len(part) - at)
                found = self._checksum(part[at : at + take], found)
                at, filled = at + take, filled + take
                if filled == size:
                    self._compare(number, found)
                    number, found, filled = number + 1, 0, 0
        if filled:  # the file's last and short one
            self._compare(number, found)

    def close(self) -> None:
        """Let go of the descriptor; a later read takes a new one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _partly_needed(self, chunk: int) -> Bytes:
        data = self._cache.get(self.entry.name, chunk)
        if data is None:
            size = self.header.chunk_bytes
            data = np.empty(min(size, self.header.data_bytes - chunk * size), dtype=np.uint8)
            self._read_whole_chunks(chunk, data)
            self._cache.put(self.entry.name, chunk, data)
        return data

    def _read_whole_chunks(self, chunk: int, out: Bytes) -> None:
        """Read and check consecutive chunks; the last may be the file's short one."""
        self.read_chunks(chunk, [out])
        self.check_chunks(chunk, [out])

    def _compare(self, chunk: int, found: int) -> None:
        if found != self.header.checksums[chunk]:
            start = self.header.data_start + chunk * self.header.chunk_bytes
            raise DamagedCheckpoint(
                f"{self.entry.name}: chunk {chunk} of {len(self.header.checksums)} (bytes from "
                f"{start}) does not match its checksum"
            )

    def _checked_header(self, wanted: Identity) -> Header:
        name = self.entry.name
        prefix = np.empty(8, dtype=np.uint8)
        self._read_bytes(0, prefix)
        length = 8 + int.from_bytes(prefix.tobytes(), "little")
        if length > min(8 + HEADER_LIMIT_BYTES, self.entry.size):
            raise DamagedCheckpoint(f"{name}: a header of {length} bytes")
        content = np.empty(length, dtype=np.uint8)
        self._read_bytes(0, content)
        if digest_of(content.tobytes()) != self.entry.digest:
            raise DamagedCheckpoint(f"{name}: the header does not match the manifest's digest")
        header = decode_header(content.tobytes(), file=name, size=self.entry.size)
        if header.identity != wanted:
            raise DamagedCheckpoint(f"{name}: is {header.identity} instead of {wanted}")
        return header

    def _read_bytes(self, offset: int, out: Bytes) -> None:
        file = self._opened()
        try:
            if file.read_into(offset, out) != len(out):
                raise DamagedCheckpoint(f"{self.entry.name}: ends early")
        except OSError as e:
            raise read_failure(e, self._path) from e

    def _opened(self) -> StoredFile:
        if self._file is None:
            try:
                self._file = self._storage.open(self._path)
            except OSError as e:
                raise read_failure(e, self._path) from e
            if self._file.size != self.entry.size:
                raise DamagedCheckpoint(
                    f"{self.entry.name}: {self._file.size} bytes instead of {self.entry.size}"
                )
        return self._file


def _grouped(parts: Sequence[Bytes]) -> Iterator[list[Bytes]]:
    """Small parts that lie side by side together, each other one alone."""
    small: list[Bytes] = []
    for part in parts:
        if len(part) < _SMALL_BYTES:
            small.append(part)
            continue
        if small:
            yield small
            small = []
        yield [part]
    if small:
        yield small
