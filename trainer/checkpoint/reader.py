"""A stored step as a FragmentSource: what an engine fills itself from."""

from __future__ import annotations

import numpy as np
import torch

from trainer.checkpoint.ranges import StoredTensors
from trainer.errors import CheckpointError
from trainer.records.fragment import Fragment

_BLOCK_ELEMENTS = 4 << 20  # 16 MiB: what a read to a device passes through


class CheckpointReader:
    """Fills tensors from stored ranges. Any world size, any layout: a read is a range.

    Raises (from `read`): CheckpointMismatch naming the tensor, DamagedCheckpoint naming the file.
    """

    def __init__(self, stored: StoredTensors) -> None:
        self.stored = stored

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        out = out.detach()
        if out.numel() != fragment.length:
            raise ValueError(f"{fragment.length} elements into a tensor of {out.numel()}")
        if out.device.type == "cpu" and out.dtype == torch.float32 and out.is_contiguous():
            self.stored.read(fragment, out.reshape(-1).numpy().view(np.uint8))
            return
        for start in range(fragment.start, fragment.stop, _BLOCK_ELEMENTS):
            stop = min(start + _BLOCK_ELEMENTS, fragment.stop)
            block = torch.empty(stop - start, dtype=torch.float32)
            part = Fragment(fragment.name, fragment.kind, fragment.shape, start, stop)
            self.stored.read(part, block.numpy().view(np.uint8))
            out[start - fragment.start : stop - fragment.start].copy_(block)


class PatientReader:
    """Never raises while an engine loads: remembers the first failure and fills with zeros.

    An engine's load is collective. A rank that raised in the middle of it would leave the others
    waiting in the next collective for ever; so all ranks load to the end, and then agree.
    """

    def __init__(self, reader: CheckpointReader) -> None:
        self._reader = reader
        self.failure: CheckpointError | None = None

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        if self.failure is None:
            try:
                self._reader.read(fragment, out)
                return
            except CheckpointError as e:
                self.failure = e
        out.detach().zero_()

    def verdict(self) -> None:
        """Raises: the first failure, if there was one."""
        if self.failure is not None:
            raise self.failure
