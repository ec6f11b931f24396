"""Scores of one class of C an example (or a token), from how often each was taken for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainer.batch import IGNORED
from trainer.evals.metrics.base import Sums, f1, ratio


@dataclass(frozen=True)
class ClassRow:
    """One line of the table of classes."""

    label: str
    precision: float
    recall: float
    f1: float
    examples: int  # that are of this class
    predicted: int


@dataclass(frozen=True)
class Confusion:
    """Sums: C x C counts, a row for each actual class, a column for each predicted one.

    `left_out`: labels that F1 does not ask for ("no_relation"), though taking another for one of
    them still costs recall, and the other way round precision.
    """

    labels: tuple[str, ...]
    left_out: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return len(self.labels) ** 2

    def sums_of(self, predicted: ArrayLike, reference: ArrayLike) -> Sums:
        """Class indices of the same shape; a reference of IGNORED (padding) does not count."""
        actual = np.asarray(reference, np.int64).ravel()
        chosen = np.asarray(predicted, np.int64).ravel()
        counts = actual != IGNORED
        cells = actual[counts] * len(self.labels) + chosen[counts]
        found: Sums = np.bincount(cells, minlength=self.size).astype(np.float64)
        assert len(found) == self.size, "a class outside the declared labels"
        return found

    def counts(self, sums: Sums) -> NDArray[np.int64]:
        """(C, C): [actual, predicted]."""
        return sums.reshape(len(self.labels), -1).astype(np.int64)

    def table(self, sums: Sums) -> list[ClassRow]:
        matrix = self.counts(sums)
        found, predicted, actual = matrix.diagonal(), matrix.sum(0), matrix.sum(1)
        return [
            ClassRow(
                label, *f1(found[c], predicted[c], actual[c]), int(actual[c]), int(predicted[c])
            )
            for c, label in enumerate(self.labels)
        ]

    def value(self, sums: Sums) -> dict[str, float]:
        """accuracy, macro_f1, micro_f1, matthews.

        Macro is over the classes that occur, in truth or in answers, as sklearn does without
        `labels`; declared ones that nobody saw are no zero.
        """
        matrix = self.counts(sums)
        kept = [c for c, label in enumerate(self.labels) if label not in self.left_out]
        table = [row for row in self.table(sums) if row.label not in self.left_out]
        seen = [row.f1 for row in table if row.examples or row.predicted]
        _, _, micro = f1(
            matrix.diagonal()[kept].sum(), matrix.sum(0)[kept].sum(), matrix[kept].sum()
        )
        return {
            "accuracy": ratio(matrix.trace(), matrix.sum()),
            "macro_f1": ratio(sum(seen), len(seen)),
            "micro_f1": micro if matrix.sum() else float("nan"),
            "matthews": matthews(matrix),
        }


def matthews(matrix: NDArray[np.int64]) -> float:
    """The correlation of truth and answers over C classes; 0 where either never varies.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation
    coefficient"; for two classes Matthews 1975.
    """
    counts = matrix.astype(object)  # integers without an end: products of counts are exact
    total, right = counts.sum(), counts.trace()
    if not total:
        return float("nan")
    actual, predicted = counts.sum(1), counts.sum(0)
    covariance = right * total - (actual * predicted).sum()
    spread = (total**2 - (predicted**2).sum()) * (total**2 - (actual**2).sum())
    return float(covariance) / float(spread) ** 0.5 if spread else 0.0


@dataclass(frozen=True)
class MultiLabel:
    """Any number of labels an example. Sums: found, predicted, actual of each label; then examples
    answered without a mistake, examples, and wrong decisions."""

    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        return 3 * len(self.labels) + 3

    def sums_of(self, predicted: ArrayLike, reference: ArrayLike) -> Sums:
        """Booleans (E, C)."""
        chosen_EC, actual_EC = np.asarray(predicted, bool), np.asarray(reference, bool)
        wrong_EC = chosen_EC != actual_EC
        each = [(chosen_EC & actual_EC).sum(0), chosen_EC.sum(0), actual_EC.sum(0)]
        whole = [(~wrong_EC.any(1)).sum(), len(wrong_EC), wrong_EC.sum()]
        return np.concatenate([*each, whole]).astype(np.float64)

    def table(self, sums: Sums) -> list[ClassRow]:
        found, predicted, actual = sums[:-3].reshape(3, -1)
        return [
            ClassRow(
                label, *f1(found[c], predicted[c], actual[c]), int(actual[c]), int(predicted[c])
            )
            for c, label in enumerate(self.labels)
        ]

    def value(self, sums: Sums) -> dict[str, float]:
        """macro_f1 is over all labels, as sklearn's for indicator matrices."""
        found, predicted, actual = sums[:-3].reshape(3, -1).sum(1)
        right, examples, wrong = sums[-3:]
        if not examples:
            return dict.fromkeys(("accuracy", "macro_f1", "micro_f1", "hamming_loss"), float("nan"))
        scores = [row.f1 for row in self.table(sums)]
        return {
            "accuracy": right / examples,
            "macro_f1": sum(scores) / len(scores),
            "micro_f1": f1(found, predicted, actual)[2],
            "hamming_loss": wrong / (examples * len(self.labels)),
        }
