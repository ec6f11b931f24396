"""BLEU and chrF as sacrebleu computes them; the only door to it.

Its own tokenizers and formulas are used. Only the sums pass between ranks, so that no text does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums


class _Sacre(ABC):
    """`_scorer` is one of sacrebleu's; what it counts adds up over texts.

    The two underscored methods are those that its corpus_score is made of (2.6.0); tests hold the
    result against corpus_score.
    """

    name: str
    size: int

    def sums_of(self, predicted: str, reference: Sequence[str]) -> Sums:
        """One text, and its references: as many for each text as for any other, or fewer."""
        counted = self._scorer._extract_corpus_statistics(
            [predicted], [[text] for text in reference]
        )
        return np.array(counted[0], np.float64)

    def value(self, sums: Sums) -> dict[str, float]:
        """On a scale of 100."""
        counts = [int(number) for number in sums]
        return {self.name: float(self._scorer._compute_score_from_stats(counts).score)}

    @property
    @abstractmethod
    def _scorer(self) -> Any:
        """sacrebleu's own metric."""


class Bleu(_Sacre):
    """Sums: tokens said, tokens of the closest reference, and for n = 1..4 right and said n-grams.

    `tokenize`: 13a, intl, char, zh, none, ... as sacrebleu names them; None is its default, 13a.
    """

    name = "bleu"
    size = 2 + 2 * 4

    def __init__(self, *, tokenize: str | None = None, lowercase: bool = False) -> None:
        self._settings = {"tokenize": tokenize, "lowercase": lowercase}

    @cached_property
    def _scorer(self) -> Any:
        # force: the hint about tokenized input, once in 100 lines, is for whole files.
        return _sacrebleu().BLEU(force=True, **self._settings)


class Chrf(_Sacre):
    """Sums: n-grams said, given and right, for each order. `word_order` 2 is chrF++."""

    def __init__(self, *, word_order: int = 0, lowercase: bool = False) -> None:
        self.name = "chrf" + "+" * word_order
        self.size = 3 * (6 + word_order)
        self._settings = {"word_order": word_order, "lowercase": lowercase}

    @cached_property
    def _scorer(self) -> Any:
        return _sacrebleu().CHRF(**self._settings)


def _sacrebleu() -> Any:
    try:
        import sacrebleu.metrics
    except ImportError as e:
        raise Refused("BLEU and chrF need sacrebleu: pip install 'longhaul[eval]'") from e
    return sacrebleu.metrics
