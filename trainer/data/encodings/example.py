"""What every encoding gives: one example as the model will see it, and where it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# What an encoding knows of an example that its arrays do not show; the audit (trainer/data/
# audit_kinds.py) says what each means. A store keeps them as bits, in this order.
NOTES = (
    "answer_cut", "answer_lost", "answer_inexact", "answers_left_out", "end_missing", "misaligned",
    "source_cut", "words_cut", "words_lost", "cut",
)  # fmt: skip
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


def bits_of(example: Example) -> int:
    """Its notes as a store keeps them."""
    bits = sum(1 << NOTES.index(name) for name in example.notes)
    return bits or (1 << NOTES.index("cut")) * example.was_cut


def notes_of(bits: int) -> dict[str, int]:
    return {name: 1 for number, name in enumerate(NOTES) if bits >> number & 1}
