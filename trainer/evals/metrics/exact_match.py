"""Answers that are one of the given ones, letter by letter or nearly so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainer.evals.metrics.base import Sums, ratio
from trainer.evals.metrics.squad import normalised


@dataclass(frozen=True)
class ExactMatch:
    """Sums: right answers, answers. `ignoring`: "nothing"; "spaces" at the ends and more than one;
    "squad": case, punctuation and articles as well."""

    ignoring: Literal["nothing", "spaces", "squad"] = "spaces"

    @property
    def size(self) -> int:
        return 2

    def sums_of(self, predicted: str, reference: Sequence[str]) -> Sums:
        right = self._plain(predicted) in {self._plain(answer) for answer in reference}
        return np.array([right, 1.0], np.float64)

    def value(self, sums: Sums) -> dict[str, float]:
        return {"exact_match": ratio(float(sums[0]), float(sums[1]))}

    def _plain(self, text: str) -> str:
        if self.ignoring == "squad":
            return normalised(text)
        return " ".join(text.split()) if self.ignoring == "spaces" else text
