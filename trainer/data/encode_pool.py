"""Encodes chunks of documents in several processes; results come back in order.

At most two chunks a process are in flight, so memory stays bounded however large the corpus is.
The same chunks give the same tokens with any number of processes.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from trainer.data.encoder import EncodedChunk, Encoder
from trainer.errors import DataError

CHUNK_BYTES = 4 << 20
CHUNK_DOCUMENTS = 8192

_encoder: Encoder | None = None  # of a worker process, set once when it starts


@dataclass(frozen=True)
class EncodeSettings:
    """`processes` 0: in this process, with the threads of the tokenizer's own library."""

    tokenizer_folder: Path
    accelerated: bool
    processes: int


def encoded(texts: Iterator[str], settings: EncodeSettings) -> Iterator[EncodedChunk]:
    """Raises: AcceleratorDiffers; DataError if a process dies."""
    if settings.processes == 0:
        encoder = Encoder(
            settings.tokenizer_folder, accelerated=settings.accelerated, parallel=True
        )
        yield from map(encoder.encode, chunks(texts))
        return
    # spawn: a fork of a process with the tokenizer's threads may hang
    pool = ProcessPoolExecutor(
        settings.processes,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(settings,),
    )
    try:
        in_flight: deque[Future[EncodedChunk]] = deque()
        for chunk in chunks(texts):
            in_flight.append(pool.submit(_encode, chunk))
            if len(in_flight) >= 2 * settings.processes:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    except BrokenProcessPool as e:
        raise DataError(
            "a process of the preparation was killed, most likely for want of memory; "
            "try data.num_workers=1, then run again: finished shards are kept"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def chunks(texts: Iterator[str]) -> Iterator[list[str]]:
    held: list[str] = []
    size = 0
    for text in texts:
        held.append(text)
        size += len(text)
        if size >= CHUNK_BYTES or len(held) >= CHUNK_DOCUMENTS:
            yield held
            held, size = [], 0
    if held:
        yield held


def _start(settings: EncodeSettings) -> None:
    global _encoder  # one encoder a process: to send it with each chunk costs more than the work
    _encoder = Encoder(settings.tokenizer_folder, accelerated=settings.accelerated, parallel=False)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()  # a killed parent closes no pipes that its other children hold too
        os._exit(1)


def _encode(texts: list[str]) -> EncodedChunk:
    assert _encoder is not None
    return _encoder.encode(texts)
