"""What every encoding gives: one example as the model will see it, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Example:
    """Named arrays (int64 or float32), all of one example; lengths may differ between names.

    `inputs` T ids are always there. Others by the task, T long where they speak of positions:
    `segments`, `labels` (IGNORED where nothing is learnt), `decoder_inputs`; short where they
    speak of the example: `classes` (1), `targets` (C), `spans` (2).
    `text`: what is kept beside the arrays for scores, as JSON values (an id, reference answers).
    """

    arrays: Mapping[str, Array]
    file: str
    row: int
    text: Mapping[str, Any] = field(default_factory=dict)
    was_cut: bool = False  # it was longer than a row
    notes: Mapping[str, int] = field(default_factory=dict)  # what the audit counts, by its name

    @property
    def place(self) -> str:
        """For messages: "train.jsonl row 7"."""
        return f"{self.file} row {self.row}"

    @property
    def length(self) -> int:
        """T, the number of input ids."""
        return len(self.arrays["inputs"])


def integers(values: Any) -> Array:
    """int64, as the model takes ids."""
    return np.asarray(values, dtype=np.int64)


def noted(**counts: int) -> dict[str, int]:
    """Those that are not 0."""
    return {name: int(count) for name, count in counts.items() if count}
