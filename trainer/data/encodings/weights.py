"""How much a token of the loss counts: a number of the data, of an example, a word or a message."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from trainer.data.encodings.example import Array
from trainer.errors import DataError
from trainer.records.example_store import Column

MOST = 1000.0


def weights_column(axis: Literal["T", "S"] = "T") -> Column:
    """Of stores whose task is weighted; a label that is IGNORED has the weight 0."""
    return Column("weights", "float32", axis)


def weight_of(value: Any, where: str) -> float:
    """1 where nothing is said; numbers may be spelled, as CSV has them.

    Raises: DataError for what is no number from 0 to MOST.
    """
    if value is None or value == "":
        return 1.0
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 <= weight <= MOST:
        raise DataError(f"{where}: its weight is {value!r}, not a number from 0 to {MOST:g}")
    return weight


def weights(values: Sequence[float] | Array) -> Array:
    """float32, as a loss takes them."""
    return np.asarray(values, dtype=np.float32)
