"""A loss that does not depend on the tokenizer."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from trainer.evals.metrics.base import Sums, ratio


@dataclass(frozen=True)
class BitsPerByte:
    """Sums: nats, and bytes of the text in UTF-8 that they were lost on."""

    @property
    def size(self) -> int:
        return 2

    def sums_of(self, predicted: float, reference: int) -> Sums:
        """The summed loss of some tokens in nats, and how many bytes of text they stand for."""
        return np.array([predicted, reference], np.float64)

    def value(self, sums: Sums) -> dict[str, float]:
        return {"bits_per_byte": ratio(float(sums[0]) / math.log(2), float(sums[1]))}
