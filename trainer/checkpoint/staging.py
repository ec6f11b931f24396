"""Two buffers in shared memory that a save is copied to while training stands still.

Anonymous memory (memfd), mapped by this rank and by its writer process: it has no name, so nothing
is left behind whoever dies, and /dev/shm may be as small as a container likes. Every page is
touched when a buffer is made: a copy to fresh pages takes several times as long.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import time
from collections.abc import Sequence

import numpy as np
import torch

from trainer.checkpoint.format import ELEMENT_BYTES
from trainer.checkpoint.held import check_plan, flat_values, plan_fragments
from trainer.checkpoint.writer import ChunkChecksums
from trainer.engine.base import Engine
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment
from trainer.storage.local import Bytes

NUM_BUFFERS = 2
_PAGE = mmap.PAGESIZE
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python has no name for it


class Staging:
    """This rank's buffers; equal sizes, made for what the engine holds.

    `checksums`: take those of the source's chunks while copying, so that a bit that flips in the
    buffer is found when it is written. `pin`: lock the pages for a GPU's own copies.
    """

    def __init__(self, *, chunk_bytes: int, checksums: bool = False, pin: bool = False) -> None:
        self._chunk_bytes = chunk_bytes
        self._checksums = checksums
        self._pin = pin
        self._buffers: list[_Buffer] = []
        self.seconds = 0.0  # spent on making buffers

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What the writer process maps."""
        return tuple(b.descriptor for b in self._buffers)

    @property
    def num_bytes(self) -> int:
        """Of all buffers together."""
        return sum(b.elements for b in self._buffers) * ELEMENT_BYTES

    def reserve(self, engine: Engine) -> tuple[Fragment, ...]:
        """Make room for what the engine holds now, which is returned.

        Raises: OSError (ENOMEM), CheckpointError.
        """
        plan = plan_fragments(engine)
        needed = sum(f.length for f in plan)
        if self._buffers and self._buffers[0].elements >= needed:
            return plan
        started = time.perf_counter()
        self.close()
        self._buffers = [_Buffer(needed, pin=self._pin) for _ in range(NUM_BUFFERS)]
        self.seconds += time.perf_counter() - started
        return plan

    def copy(
        self, engine: Engine, into: int, *, known: Sequence[Fragment] | None
    ) -> tuple[tuple[Fragment, ...], tuple[int, ...] | None]:
        """Copy what the engine holds into a buffer, in one pass over its fragments.

        Returns the fragments and, if they are taken, the chunks' checksums. `known`: fragments
        that were checked before. Raises: CheckpointError; NoRoom if they outgrew the buffer.
        """
        sums = ChunkChecksums(self._chunk_bytes) if self._checksums else None
        plan = copy_held(engine, self._buffers[into].tensor, known=known, sums=sums)
        return plan, None if sums is None else tuple(sums.all())

    def bytes_of(self, buffer: int) -> Bytes:
        return self._buffers[buffer].tensor.numpy().view(np.uint8)

    def close(self) -> None:
        """Let go of the memory; the writer's mapping keeps it alive until that ends too."""
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []


def copy_held(
    engine: Engine,
    room: torch.Tensor,
    *,
    known: Sequence[Fragment] | None,
    sums: ChunkChecksums | None = None,
) -> tuple[Fragment, ...]:
    """What `Staging.copy` does, into any host memory; the fragments that were copied."""
    plan: list[Fragment] = []
    at = 0
    for held in engine.fragments():
        length = held.fragment.length
        if length == 0:
            continue
        if at + length > len(room):
            raise NoRoom(f"{at + length} elements and more into a buffer of {len(room)}")
        values, target = flat_values(held), room[at : at + length]
        target.copy_(values, non_blocking=True)
        if sums is not None:
            _wait_for(values.device)
            sums.add((values if values.is_cpu else target).contiguous().numpy().view(np.uint8))
        plan.append(held.fragment)
        at += length
    _wait_for(engine.device)
    if tuple(plan) != known:
        check_plan(plan, engine)
    return tuple(plan)


class NoRoom(CheckpointError):
    """The engine holds more than when the buffers were made."""


class _Buffer:
    def __init__(self, elements: int, *, pin: bool) -> None:
        self.elements = elements
        self.descriptor = os.memfd_create("longhaul-staging", os.MFD_CLOEXEC)
        size = max(1, -(-elements * ELEMENT_BYTES // _PAGE)) * _PAGE
        os.ftruncate(self.descriptor, size)
        memory = mmap.mmap(self.descriptor, size, flags=mmap.MAP_SHARED)
        _populate(memory)
        self.tensor = torch.frombuffer(memory, dtype=torch.float32)[:elements]
        self._pinned = pin and register(self.tensor.data_ptr(), size)

    def close(self) -> None:
        if self._pinned:
            unregister(self.tensor.data_ptr())
        self.tensor = torch.empty(0)  # the mapping ends with its last view
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def _populate(memory: mmap.mmap) -> None:
    """Touch every page, in large ones where the kernel has them: the disk takes those in larger
    requests (a third faster). Raises: OSError (ENOMEM).
    """
    with contextlib.suppress(OSError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    try:
        memory.madvise(_MADV_POPULATE_WRITE)
    except OSError as e:
        if e.errno != errno.EINVAL:
            raise
        np.frombuffer(memory, dtype=np.uint8)[::_PAGE] = 0


def register(address: int, size: int) -> bool:
    """Pin pages that torch did not allocate; copies from the device then need no bounce buffer.

    Not a reason to fail: without it a copy is slower, and right. Never run on a GPU so far.
    """
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostRegister(address, size, 0)) == 0


def unregister(address: int) -> None:
    torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
