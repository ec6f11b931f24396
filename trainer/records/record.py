"""One example as its user wrote it: what the readers of formats give and encodings take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Record:
    """`fields` under our names (trainer/config/sections/examples.py), values as JSON has them.

    `row`: counted from 1; the line on which it starts in files of lines, else its number.
    """

    fields: Mapping[str, Any]
    file: str
    row: int

    @property
    def place(self) -> str:
        """For messages: "train.jsonl row 7"."""
        return f"{self.file} row {self.row}"
