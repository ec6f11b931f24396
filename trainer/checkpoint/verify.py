"""Is a stored step whole, and how do two differ. Offline: no ranks, no torch."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.format import Header, Piece
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.rank_file import ChunkCache, OpenRankFile
from trainer.errors import CheckpointError, CheckpointMismatch
from trainer.records.fragment import Fragment
from trainer.records.manifest import MANIFEST_NAME, Manifest
from trainer.storage.local import Storage

_BLOCK_ELEMENTS = 4 << 20


@dataclass(frozen=True)
class Verification:
    """One step, every byte of it read. Whole if `problems` is empty. Units: bytes, seconds.

    `readable`: false if it is no damage, but written by a later version.
    """

    step: int
    problems: tuple[str, ...]
    files: int
    bytes: int
    seconds: float
    readable: bool = True


@dataclass(frozen=True)
class Difference:
    """One kind of one tensor in two steps. `largest`: of |a - b|; nan where either is nan."""

    name: str
    kind: str
    differing: int  # elements that are not bit-identical
    elements: int
    largest: float


def verify_files(
    storage: Storage, folder: Path, manifest: Manifest, ranks: Iterable[int]
) -> list[Header]:
    """Read and check every byte of these ranks' files. Raises: DamagedCheckpoint at the first."""
    return [_checked(storage, folder, manifest, rank) for rank in ranks]


def verify_step(storage: Storage, root: Path, step: int) -> Verification:
    """Check everything about one stored step and list all that is wrong."""
    started = time.perf_counter()
    folders = StepFolders(storage, root)
    folder = folders.step(step)
    try:
        manifest, _ = folders.manifest(step)
    except (CheckpointError, OSError) as e:
        readable = not isinstance(e, CheckpointMismatch)
        return Verification(step, (str(e),), 0, 0, time.perf_counter() - started, readable)
    problems: list[str] = []
    headers: list[Header] = []
    for rank in range(manifest.world_size):
        try:
            headers.append(_checked(storage, folder, manifest, rank))
        except CheckpointError as e:
            problems.append(str(e))
    if not problems:
        problems.extend(_holes(manifest, headers))
    known = {MANIFEST_NAME, *(f.name for f in manifest.files)}
    problems.extend(f"{n}: not in the manifest" for n in storage.list(folder) if n not in known)
    size = sum(f.size for f in manifest.files)
    passed = time.perf_counter() - started
    return Verification(step, tuple(problems), len(manifest.files), size, passed)


def differences(a: StoredTensors, b: StoredTensors) -> Iterator[Difference]:
    """Every kind of every tensor that both steps have, in a's order; memory stays bounded."""
    for tensor in a.manifest.tensors:
        other = b.tensors.get(tensor.name)
        if other is None or other.shape != tensor.shape:
            continue
        for kind in tensor.kinds:
            if kind in other.kinds:
                yield _difference(
                    a, b, Fragment(tensor.name, kind, tensor.shape, 0, tensor.elements)
                )


def _difference(a: StoredTensors, b: StoredTensors, whole: Fragment) -> Difference:
    differing, largest = 0, 0.0
    for start in range(0, whole.stop, _BLOCK_ELEMENTS):
        stop = min(start + _BLOCK_ELEMENTS, whole.stop)
        part = Fragment(whole.name, whole.kind, whole.shape, start, stop)
        x, y = (np.empty(part.length, dtype=np.float32) for _ in range(2))
        a.read(part, x.view(np.uint8))
        b.read(part, y.view(np.uint8))
        apart = x.view(np.uint32) != y.view(np.uint32)
        differing += int(apart.sum())
        if apart.any():
            with np.errstate(invalid="ignore"):
                gap = np.abs(x[apart].astype(np.float64) - y[apart]).max()
            largest = float(np.maximum(largest, gap))  # keeps a nan
    return Difference(whole.name, whole.kind, differing, whole.length, largest)


def _checked(storage: Storage, folder: Path, manifest: Manifest, rank: int) -> Header:
    file = OpenRankFile(storage, folder, manifest, rank, cache=ChunkCache(0))
    try:
        file.verify()
        return file.header
    finally:
        file.close()


def _holes(manifest: Manifest, headers: Iterable[Header]) -> Iterator[str]:
    """Elements that no file holds, or that two hold."""
    held: dict[tuple[str, str], list[Piece]] = {}
    for header in headers:
        for key, pieces in header.pieces.items():
            held.setdefault(key, []).extend(pieces)
    for tensor in manifest.tensors:
        for kind in tensor.kinds:
            at = 0
            for piece in sorted(held.get((tensor.name, kind), ()), key=lambda p: p.start):
                if piece.start != at:
                    break
                at = piece.stop
            if at != tensor.elements:
                yield f"{kind} of {tensor.name!r}: wrong from element {at} of {tensor.elements}"
