"""A stored step as logical tensors: any range of any of them, whoever wrote which part.

Opens a rank's file when a range first needs it, and no other. Torch-free: `longhaul checkpoint`
and exporters read with it as well as the ranks do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from trainer.checkpoint.ahead import Range, read_ranges
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.format import ELEMENT_BYTES, Piece
from trainer.checkpoint.layout import FileIndex
from trainer.checkpoint.rank_file import ChunkCache, OpenRankFile
from trainer.errors import CheckpointMismatch, DamagedCheckpoint, Refused
from trainer.records.fragment import Fragment
from trainer.records.manifest import LogicalTensor, Manifest
from trainer.storage.local import Bytes, Storage

_OPEN_FILES = 64  # descriptors held at once; tables stay, so reopening costs one call
_CACHE_BYTES = 64 << 20


class StoredTensors:
    """One step's logical tensors, checked as they are read.

    `folder` is the step's; its manifest was read by `StepFolders.manifest`.
    """

    def __init__(self, storage: Storage, folder: Path, manifest: Manifest) -> None:
        self.manifest = manifest
        self.tensors = {t.name: t for t in manifest.tensors}
        self._storage = storage
        self._folder = folder
        self._index = FileIndex(manifest)
        self._cache = ChunkCache(_CACHE_BYTES)
        self._files: dict[int, OpenRankFile] = {}
        self._recent: OrderedDict[int, None] = OrderedDict()

    @property
    def step(self) -> int:
        return self.manifest.step

    def tensor(self, fragment: Fragment) -> LogicalTensor:
        """Raises: CheckpointMismatch if the step has no such tensor, shape or kind."""
        found = self.tensors.get(fragment.name)
        where = f"checkpoint of step {self.step}"
        if found is None:
            raise CheckpointMismatch(f"{where}: it has no tensor {fragment.name!r}")
        if found.shape != fragment.shape:
            raise CheckpointMismatch(
                f"{where}: {fragment.name!r} has shape {list(found.shape)}, "
                f"but this model's is {list(fragment.shape)}"
            )
        if fragment.kind not in found.kinds:
            raise CheckpointMismatch(
                f"{where}: {fragment.name!r} has no {fragment.kind!r}, only "
                f"{', '.join(found.kinds)}; was it trained with another optimizer?"
            )
        return found

    def read(self, fragment: Fragment, out: Bytes) -> None:
        """Fill `out`, 4 bytes an element, with the fragment's fp32 values.

        Raises: CheckpointMismatch, DamagedCheckpoint, CheckpointError as OpenRankFile says.
        """
        for part in self._ranges(fragment, out):
            self._opened(part.file).read(part.offset, part.out)

    def read_all(self, wanted: Iterable[tuple[Fragment, Bytes]]) -> None:
        """As `read` for each of them, but in the order of the files and ahead of the checks.

        Nothing may be used before this returns, nor anything if it raises.
        """
        read_ranges(
            (part for fragment, out in wanted for part in self._ranges(fragment, out)),
            opened=self._opened,
        )

    def _ranges(self, fragment: Fragment, out: Bytes) -> Iterator[Range]:
        """Where the fragment's bytes lie and where in `out` they go."""
        self.tensor(fragment)
        at = fragment.start
        for piece, number in self._pieces(fragment):
            if piece.start > at:
                break
            stop = min(piece.stop, fragment.stop)
            if stop <= at:
                continue
            offset = piece.offset + (at - piece.start) * ELEMENT_BYTES
            first, last = ((x - fragment.start) * ELEMENT_BYTES for x in (at, stop))
            yield Range(number, offset, out[first:last])
            at = stop
        if at < fragment.stop:
            raise DamagedCheckpoint(
                f"step {self.step}: no file holds elements from {at} of {fragment.kind} of "
                f"{fragment.name!r}"
            )

    def array(self, name: str, kind: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        """A whole logical tensor; for small ones and for tests."""
        shape = self.tensors[name].shape if name in self.tensors else ()
        flat = np.empty(self.tensors[name].elements if name in self.tensors else 0, np.float32)
        self.read(Fragment(name, kind, shape, 0, flat.size), flat.view(np.uint8))
        return flat.reshape(shape)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        self._recent.clear()

    def _pieces(self, f: Fragment) -> list[tuple[Piece, int]]:
        """All stored pieces of the range and their files' numbers, by start."""
        if f.length == 0:
            return []
        found = [
            (piece, number)
            for number in self._index.files(f.name, f.start, f.stop)
            for piece in self._opened(number).header.overlapping(f.name, f.kind, f.start, f.stop)
        ]
        return sorted(found, key=lambda item: item[0].start)

    def _opened(self, number: int) -> OpenRankFile:
        """The file, as the one used last; the one used longest ago gives up its descriptor."""
        file = self._files.get(number)
        if file is None:
            file = self._files[number] = OpenRankFile(
                self._storage, self._folder, self.manifest, number, cache=self._cache
            )
        self._recent[number] = None
        self._recent.move_to_end(number)
        if len(self._recent) > _OPEN_FILES:
            oldest, _ = self._recent.popitem(last=False)
            self._files[oldest].close()
        return file


def open_step(storage: Storage, root: Path, step: int | None = None) -> StoredTensors:
    """The step's tensors, or the newest step's, from a checkpoints folder.

    Raises: Refused if there is none; DamagedCheckpoint, CheckpointMismatch.
    """
    folders = StepFolders(storage, root)
    steps = folders.steps()
    if not steps or (step is not None and step not in steps):
        there = ", ".join(str(s) for s in steps) or "none"
        asked = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        raise Refused(f"{root}: {asked}; there are: {there}")
    chosen = steps[-1] if step is None else step
    manifest, _ = folders.manifest(chosen)
    return StoredTensors(storage, folders.step(chosen), manifest)
