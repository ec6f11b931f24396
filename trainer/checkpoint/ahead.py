"""Many ranges of rank files at once: read in place in large blocks, checked while more is read.

    wanted ranges -> sorted by file and offset -> blocks of whole chunks -> reading threads -> check

A block is made of the destinations themselves; only bytes of its first and last chunk that nobody
asked for go to scratch memory. A thread reads the next blocks (preadv holds no lock of Python's)
while this one computes checksums, so a disk always has something to do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from trainer.checkpoint.format import Header
from trainer.checkpoint.rank_file import OpenRankFile
from trainer.storage.local import Bytes

_BLOCK_BYTES = 4 << 20  # checked while it is in the cache
_THREADS = 2
_AHEAD = 4  # blocks that are read or wait for their check; each holds two chunks of scratch at most


@dataclass(frozen=True)
class Range:
    """Bytes of a file's data from `offset`, and where they go."""

    file: int
    offset: int
    out: Bytes


@dataclass(frozen=True)
class _Block:
    """Whole chunks from `first` on; `parts` are their bytes in order."""

    file: int
    first: int
    parts: Sequence[Bytes]


def read_ranges(ranges: Iterable[Range], *, opened: Callable[[int], OpenRankFile]) -> None:
    """Fill them all; every byte was checked when this returns, and none may be used before.

    `opened`: the file of a number, its header checked; called from this thread only.
    Raises: DamagedCheckpoint, CheckpointError as OpenRankFile does.
    """
    ordered = sorted((r for r in ranges if len(r.out)), key=lambda r: (r.file, r.offset))
    under_way: deque[tuple[OpenRankFile, _Block, Future[None]]] = deque()
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="checkpoint-read")
    try:
        for block in _blocks(ordered, opened):
            file = opened(block.file)
            file.open()
            job = pool.submit(file.read_chunks, block.first, block.parts)
            under_way.append((file, block, job))
            if len(under_way) >= _AHEAD:
                _check(*under_way.popleft())
        while under_way:
            _check(*under_way.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _check(file: OpenRankFile, block: _Block, job: Future[None]) -> None:
    job.result()
    file.check_chunks(block.first, block.parts)


def _blocks(ordered: Sequence[Range], opened: Callable[[int], OpenRankFile]) -> Iterator[_Block]:
    """Ranges that touch or share a chunk are read together; what lies between others is not."""
    run: list[Range] = []
    for following in ordered:
        if run and not _goes_on(run[-1], following, opened(following.file).header.chunk_bytes):
            yield from _cut(run, opened(run[0].file).header)
            run = []
        run.append(following)
    if run:
        yield from _cut(run, opened(run[0].file).header)


def _goes_on(last: Range, following: Range, chunk_bytes: int) -> bool:
    """Two ranges of the same bytes are read twice: each destination needs its own."""
    reached = last.offset + len(last.out)
    gap = following.offset - reached
    return last.file == following.file and (gap == 0 or 0 < gap < -reached % chunk_bytes)


def _cut(run: Sequence[Range], header: Header) -> Iterator[_Block]:
    """The run's bytes from its first chunk on, gaps in scratch memory, a few chunks a block."""
    chunk_bytes = header.chunk_bytes
    limit = max(1, _BLOCK_BYTES // chunk_bytes) * chunk_bytes
    start = run[0].offset // chunk_bytes * chunk_bytes
    reached = run[-1].offset + len(run[-1].out)
    end = min(reached + -reached % chunk_bytes, header.data_bytes)
    parts: list[Bytes] = []
    filled = 0
    for part in _parts(run, start, end):
        at = 0
        while at < len(part):
            take = min(limit - filled, len(part) - at)
            parts.append(part[at : at + take])
            at, filled = at + take, filled + take
            if filled == limit:
                yield _Block(run[0].file, start // chunk_bytes, parts)
                parts, filled, start = [], 0, start + limit
    if parts:
        yield _Block(run[0].file, start // chunk_bytes, parts)


def _parts(run: Sequence[Range], start: int, end: int) -> Iterator[Bytes]:
    at = start
    for wanted in run:
        if at < wanted.offset:
            yield np.empty(wanted.offset - at, dtype=np.uint8)
        yield wanted.out
        at = wanted.offset + len(wanted.out)
    if at < end:
        yield np.empty(end - at, dtype=np.uint8)
