"""The set of labels: given by the settings or found in the data, and messages about the rest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from trainer.errors import DataError
from trainer.records.record import Record

MOST_LABELS = 10_000  # more are a column of something else


def label_name(value: Any) -> str:
    """As it stands in the model's config: 3 and 3.0 and "3" are one label, true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return str(value).strip()


def in_order(labels: Iterable[str]) -> tuple[str, ...]:
    """Numbers by value if all are numbers, else by name: the same whatever the order of rows."""
    names = list(labels)
    if all(_is_number(name) for name in names):
        return tuple(sorted(names, key=lambda n: (float(n), n)))
    return tuple(sorted(names))


class LabelSet:
    """Label -> its number."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._number = {name: i for i, name in enumerate(self.names)}

    def number(self, value: Any, record: Record) -> int:
        """Raises: DataError naming the row, for a label that is none of the set."""
        name = label_name(value)
        found = self._number.get(name)
        if found is not None:
            return found
        near = difflib.get_close_matches(name, self.names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        shown = ", ".join(self.names[:8]) + (", ..." if len(self.names) > 8 else "")
        raise DataError(
            f"{record.place}: the label {name!r} is none of the {len(self.names)} of this task "
            f"({shown}){hint}; correct the row, or name it in data.labels"
        )


def _is_number(name: str) -> bool:
    try:
        value = float(name)
    except ValueError:
        return False
    return value == value
