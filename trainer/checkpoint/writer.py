"""One rank's part of a save: what it holds, and its file. Local; no collectives here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from trainer.checkpoint.checksum import ALGORITHMS, DEFAULT
from trainer.checkpoint.format import (
    CHUNK_BYTES,
    Identity,
    data_bytes_of,
    digest_of,
    encode_header,
    num_chunks,
)
from trainer.engine.base import Engine
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment
from trainer.records.manifest import rank_file_name
from trainer.storage.local import Bytes, NewFile, Storage

_BLOCK_ELEMENTS = 4 << 20  # 16 MiB: read while hot for the checksum, then written in one call


@dataclass(frozen=True)
class Written:
    """A finished, fsynced file. Units: bytes."""

    size: int
    digest: str


def plan_fragments(engine: Engine) -> tuple[Fragment, ...]:
    """What this rank will write, in the engine's order, empty fragments left out.

    Raises: CheckpointError if the engine's fragments contradict its layout or each other.
    """
    shapes = dict(engine.layout())
    plan = tuple(h.fragment for h in engine.fragments() if h.fragment.length)
    reached: dict[tuple[str, str], int] = {}
    for f in sorted(plan):
        if shapes.get(f.name) != f.shape:
            raise CheckpointError(f"a fragment of {f.name!r} {f.shape} is not in the layout")
        if not reached.get((f.name, f.kind), 0) <= f.start < f.stop:
            raise CheckpointError(f"fragments of {f.kind} of {f.name!r} overlap or run backwards")
        reached[f.name, f.kind] = f.stop
        if f.stop > int(np.prod(f.shape, dtype=np.int64)):
            raise CheckpointError(f"a fragment of {f.name!r} ends at {f.stop}, beyond {f.shape}")
    return plan


def write_rank_file(
    storage: Storage,
    folder: Path,
    identity: Identity,
    fragments: Sequence[Fragment],
    blocks: Iterator[Bytes],
    *,
    chunk_bytes: int = CHUNK_BYTES,
    algorithm: str = DEFAULT,
) -> Written:
    """Stream `blocks`, the fragments' bytes in order, into this rank's file; durable on return.

    The file's size is known from the table, so the disk's room is claimed before the first byte.
    Raises: OSError; CheckpointError if the blocks are not as many bytes as the fragments.
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
        end, checksums = _stream(
            file, blocks, start=start, chunk_bytes=chunk_bytes, algorithm=algorithm
        )
        if end != start + total:
            raise CheckpointError(f"{end - start} bytes of values for fragments of {total}")
        head = header(checksums)
        file.write(0, head)
        file.fsync()
    return Written(start + total, digest_of(head))


def _stream(
    file: NewFile, blocks: Iterator[Bytes], *, start: int, chunk_bytes: int, algorithm: str
) -> tuple[int, list[int]]:
    """Write the blocks one after the other; returns where they end and the chunks' checksums."""
    checksum = ALGORITHMS[algorithm]
    finished: list[int] = []
    current, filled, offset = 0, 0, start
    for block in blocks:
        at = 0
        while at < len(block):
            take = min(chunk_bytes - filled, len(block) - at)
            current, filled, at = (
                checksum(block[at : at + take], current),
                filled + take,
                at + take,
            )
            if filled == chunk_bytes:
                finished.append(current)
                current, filled = 0, 0
        file.write(offset, block)
        offset += len(block)
    return offset, [*finished, current] if filled else finished


def live_blocks(engine: Engine, plan: Sequence[Fragment]) -> Iterator[Bytes]:
    """The engine's values as bytes, 16 MiB at most at a time, without a copy where they can be.

    Raises: CheckpointError if the engine now holds something else than was planned.
    """
    expected = iter(plan)
    for held in engine.fragments():
        if held.fragment.length == 0:
            continue
        if next(expected, None) != held.fragment:
            raise CheckpointError(f"the engine's fragments changed at {held.fragment.name!r}")
        values = held.values.detach().reshape(-1)
        if values.dtype != torch.float32 or values.numel() != held.fragment.length:
            raise CheckpointError(
                f"{held.fragment.kind} of {held.fragment.name!r}: {values.numel()} values of "
                f"{values.dtype} for {held.fragment.length} elements of float32"
            )
        for start in range(0, len(values), _BLOCK_ELEMENTS):
            part = values[start : start + _BLOCK_ELEMENTS]
            yield part.cpu().contiguous().numpy().view(np.uint8)
    if next(expected, None) is not None:
        raise CheckpointError("the engine's fragments ended early")
