"""A stored step as a FragmentSource: what an engine fills itself from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch

from trainer.checkpoint.ranges import StoredTensors
from trainer.engine.base import Wanted
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment
from trainer.storage.local import Bytes

_THROUGH_ELEMENTS = 8 << 20  # 32 MiB: what reads to a device pass through


class CheckpointReader:
    """Fills tensors from stored ranges. Any world size, any layout: a read is a range.

    Raises (from `read`): CheckpointMismatch naming the tensor, DamagedCheckpoint naming the file.
    """

    def __init__(self, stored: StoredTensors) -> None:
        self.stored = stored

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """One alone; the next one usually begins in the chunk in which this one ends."""
        if _is_plain(fragment, out):
            self.stored.read(fragment, _bytes_of(out))
        else:
            self.read_all([(fragment, out)])

    def read_all(self, wanted: Sequence[Wanted]) -> None:
        """In the files' order, straight into place where `out` is plain memory of the host."""
        self.stored.read_all((f, _bytes_of(out)) for f, out in wanted if _is_plain(f, out))
        for group in _groups((f, out) for f, out in wanted if not _is_plain(f, out)):
            self._read_through(group)

    def _read_through(self, parts: Sequence[Wanted]) -> None:
        room = [torch.empty(f.length, dtype=torch.float32) for f, _ in parts]
        self.stored.read_all(
            [(f, r.numpy().view(np.uint8)) for (f, _), r in zip(parts, room, strict=True)]
        )
        for (_, out), values in zip(parts, room, strict=True):
            out.copy_(values)


def _is_plain(fragment: Fragment, out: torch.Tensor) -> bool:
    if out.numel() != fragment.length:
        raise ValueError(f"{fragment.length} elements into a tensor of {out.numel()}")
    return out.device.type == "cpu" and out.dtype == torch.float32 and out.is_contiguous()


def _bytes_of(out: torch.Tensor) -> Bytes:
    return out.detach().view(-1).numpy().view(np.uint8)


def _groups(wanted: Iterable[Wanted]) -> Iterator[list[Wanted]]:
    """The same, cut so that each group fits the host memory that it passes through."""
    group: list[Wanted] = []
    room = _THROUGH_ELEMENTS
    for f, out in wanted:
        flat = out.detach().view(-1)
        start = f.start
        while start < f.stop:
            stop = min(start + room, f.stop)
            part = Fragment(f.name, f.kind, f.shape, start, stop)
            group.append((part, flat[start - f.start : stop - f.start]))
            room, start = room - (stop - start), stop
            if room == 0:
                yield group
                group, room = [], _THROUGH_ELEMENTS
    if group:
        yield group


class PatientReader:
    """Never raises while an engine loads: remembers the first failure and fills with zeros.

    An engine's load is collective. A rank that raised in the middle of it would leave the others
    waiting in the next collective for ever; so all ranks load to the end, and then agree.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self.failure: CheckpointError | None = None

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        self.read_all([(fragment, out)])

    def read_all(self, wanted: Sequence[Wanted]) -> None:
        if self.failure is None:
            try:
                self._reader.read_all(wanted)
                return
            except CheckpointError as e:
                self.failure = e
        for _, out in wanted:
            out.detach().zero_()

    def verdict(self) -> None:
        """Raises: the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure
