"""Where a stream stands: the next sample's index, and the ranges that are left out.

Pure. Step s consumes the samples (s-1)*B ... s*B - 1 of those that are not skipped, so a resume
costs nothing: it is this one integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.data.order import Indices
from trainer.errors import DataError


@dataclass(frozen=True)
class Cursor:
    """After `step` steps the next sample is `next_sample` (a global index).

    `skipped`: disjoint, sorted ranges [start, stop) of global indices that no step consumes.
    """

    step: int = 0
    next_sample: int = 0
    skipped: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, value: dict[str, Any] | None) -> Cursor:
        """Raises: DataError if it is not what `as_dict` gave."""
        if not value:
            return cls()
        try:
            skipped = tuple((int(a), int(b)) for a, b in value["skipped"])
            return cls(int(value["step"]), int(value["next_sample"]), skipped)
        except (KeyError, TypeError, ValueError) as e:
            raise DataError(f"the data cursor of the checkpoint is not readable: {value}") from e

    def as_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "next_sample": self.next_sample,
            "skipped": [list(span) for span in self.skipped],
        }

    def advanced(self, step: int, *, global_batch_size: int) -> Cursor:
        """The cursor after `step` steps of this batch size."""
        first = self.samples(step + 1, global_batch_size=global_batch_size, rows=[0])
        return Cursor(step, int(first[0]), self.skipped)

    def skipping(self, start: int, stop: int) -> Cursor:
        """The same cursor, with the samples [start, stop) left out from now on."""
        spans = sorted([*self.skipped, (start, stop)])
        merged = [spans[0]]
        for a, b in spans[1:]:
            if a <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(b, merged[-1][1]))
            else:
                merged.append((a, b))
        # what was consumed before stays consumed: only the rank of the next sample moves
        return Cursor(self.step, self.next_sample, tuple(merged))

    def samples(
        self, step: int, *, global_batch_size: int, rows: Sequence[int] | Indices
    ) -> Indices:
        """Global indices of the given rows (0..B-1) of a step."""
        done = (step - 1 - self.step) * global_batch_size
        return self.beyond(done + np.asarray(rows, dtype=np.int64))

    def beyond(self, count: Indices) -> Indices:
        """The sample that has `count` unskipped samples between it and the cursor."""
        if not self.skipped:
            return self.next_sample + count
        spans = np.array(self.skipped, dtype=np.int64)
        lengths = spans[:, 1] - spans[:, 0]
        before = np.concatenate([[0], np.cumsum(lengths)])  # skipped before each range
        ranks = spans[:, 0] - before[:-1]  # unskipped samples before each range
        position = int(np.searchsorted(spans[:, 0], self.next_sample, side="right")) - 1
        here = self.next_sample - before[max(position, 0)] if position >= 0 else self.next_sample
        if position >= 0:  # inside or behind a range: what of it lies before is not counted
            here -= min(self.next_sample, int(spans[position, 1])) - int(spans[position, 0])
        wanted = here + count
        found: Indices = wanted + before[np.searchsorted(ranks, wanted, side="right")]
        return found
