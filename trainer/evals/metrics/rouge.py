"""ROUGE as rouge-score computes it, the port of the original Perl script; the only door to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums, ratio

_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge:
    """Means over texts. Sums: texts, then precision, recall and F1 of each of the four types.

    Of several references the one with the best F1 counts, type by type. rougeLsum looks for
    sentences in lines: put a line break between them.
    `stemmer`: Porter's, for English.
    Source: Lin 2004, sec. 2 and 3.
    """

    size = 1 + 3 * len(_TYPES)

    def __init__(self, *, stemmer: bool = True) -> None:
        self._stemmer = stemmer

    def sums_of(self, predicted: str, reference: Sequence[str]) -> Sums:
        scores = self._scorer.score_multi(list(reference), predicted)
        each = [number for kind in _TYPES for number in scores[kind]]
        return np.array([1.0, *each], np.float64)

    def value(self, sums: Sums) -> dict[str, float]:
        values: dict[str, float] = {}
        for kind, (precision, recall, both) in zip(_TYPES, sums[1:].reshape(-1, 3), strict=True):
            values[kind] = ratio(float(both), float(sums[0]))
            values[f"{kind}_precision"] = ratio(float(precision), float(sums[0]))
            values[f"{kind}_recall"] = ratio(float(recall), float(sums[0]))
        return values

    @cached_property
    def _scorer(self) -> Any:
        try:
            from rouge_score.rouge_scorer import RougeScorer
        except ImportError as e:
            raise Refused("ROUGE needs rouge-score: pip install 'longhaul[eval]'") from e
        return RougeScorer(list(_TYPES), use_stemmer=self._stemmer)
