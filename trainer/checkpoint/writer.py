"""One rank's file, written and made durable. Knows bytes, not engines: torch-free."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.checksum import ALGORITHMS, DEFAULT
from trainer.checkpoint.format import (
    CHUNK_BYTES,
    Identity,
    data_bytes_of,
    digest_of,
    encode_header,
    num_chunks,
)
from trainer.errors import CheckpointError
from trainer.faultpoints import faultpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import rank_file_name
from trainer.storage.local import Bytes, NewFile, Storage


@dataclass(frozen=True)
class Written:
    """A finished, fsynced file. Units: bytes."""

    size: int
    digest: str


class ChunkChecksums:
    """One checksum for each chunk of a stream of blocks, whatever the blocks' sizes."""

    def __init__(self, chunk_bytes: int, algorithm: str = DEFAULT) -> None:
        self._checksum = ALGORITHMS[algorithm]
        self._chunk_bytes = chunk_bytes
        self._finished: list[int] = []
        self._current = self._filled = 0

    def add(self, block: Bytes) -> None:
        at = 0
        while at < len(block):
            take = min(self._chunk_bytes - self._filled, len(block) - at)
            self._current = self._checksum(block[at : at + take], self._current)
            self._filled += take
            at += take
            if self._filled == self._chunk_bytes:
                self._finished.append(self._current)
                self._current = self._filled = 0

    def all(self) -> list[int]:
        return [*self._finished, self._current] if self._filled else list(self._finished)


def write_rank_file(
    storage: Storage,
    folder: Path,
    identity: Identity,
    fragments: Sequence[Fragment],
    blocks: Iterator[Bytes],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    algorithm: str = DEFAULT,
    expected: Sequence[int] | None = None,
    threads: int = 0,
) -> Written:
    """Stream `blocks`, the fragments' bytes in order, into this rank's file; durable on return.

    The file's size is known from the table, so the disk's room is claimed before the first byte.
    `expected`: the chunks' checksums as they were at the source, where somebody took them.
    `threads`: so many blocks are written at once, while the next one's checksum is taken; 0: each
    is written before the next is asked for, so that blocks may share their memory.
    Raises: OSError; CheckpointError if the blocks are not as many bytes as the fragments, or not
    those that the checksums were taken of.
    """
    total = data_bytes_of(fragments)

    def header(checksums: Sequence[int]) -> bytes:
        return encode_header(
            identity,
            fragments,
            algorithm=algorithm,
            chunk_bytes=chunk_bytes,
            checksums=checksums,
        )

    start = len(header([0] * num_chunks(total, chunk_bytes)))
    path = folder / rank_file_name(identity.rank)
    with storage.create(path, size=start + total) as file:
        checksums = ChunkChecksums(chunk_bytes, algorithm)
        end = _stream(file, blocks, start=start, checksums=checksums, threads=threads)
        if end != start + total:
            raise CheckpointError(f"{end - start} bytes of values for fragments of {total}")
        found = checksums.all()
        if expected is not None and found != list(expected):
            chunk = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
            raise CheckpointError(
                f"chunk {chunk} of {len(found)} is not what was copied: the host's memory is bad"
            )
        head = header(found)
        file.write(0, head)
        faultpoint("save.file_written")
        file.fsync()
    faultpoint("save.file_durable")
    return Written(start + total, digest_of(head))


def _stream(
    file: NewFile, blocks: Iterator[Bytes], *, start: int, checksums: ChunkChecksums, threads: int
) -> int:
    """Write the blocks one after the other; returns where they end, with all of them written."""
    offset = start
    if not threads:
        for block in blocks:
            checksums.add(block)
            file.write(offset, block)
            offset += len(block)
        return offset
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(threads) as pool:  # waits for all, also where one failed
        for block in blocks:
            checksums.add(block)
            if len(under_way) > threads:
                under_way.popleft().result()
            under_way.append(pool.submit(file.write, offset, block))
            offset += len(block)
        for write in under_way:
            write.result()
    return offset
