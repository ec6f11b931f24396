"""F1 of relations between two entities, with and without their direction."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from trainer.errors import DataError
from trainer.evals.metrics.base import Sums, f1, ratio


@dataclass(frozen=True)
class Relation:
    """`head` and `tail` name entities of one text, say (first token, one past the last)."""

    type: str
    head: object
    tail: object


@dataclass(frozen=True)
class RelationF1:
    """Sums, for each type: found with the right direction, found in any, predicted, actual.

    A relation the wrong way round counts as predicted and as missed. For one relation an example
    (a classifier over entity markers) this macro F1 is the official one of SemEval-2010 task 8,
    "(9+1)-way with directionality": give no relation at all for "Other".
    `symmetric`: types whose direction means nothing.
    """

    types: tuple[str, ...]
    symmetric: frozenset[str] = frozenset()

    @property
    def size(self) -> int:
        return 4 * len(self.types)

    def sums_of(self, predicted: Collection[Relation], reference: Collection[Relation]) -> Sums:
        """Relations of one text. Raises: DataError for a type that was not declared."""
        chosen, actual = self._directed(predicted), self._directed(reference)
        undirected = {_turned(one) for one in chosen} & {_turned(one) for one in actual}
        sums = np.zeros((4, len(self.types)))
        found = [one.type for one in chosen & actual]
        either = [kind for kind, _ in undirected]
        kinds = (found, either, [one.type for one in chosen], [one.type for one in actual])
        for row, names in enumerate(kinds):
            for name in names:
                sums[row, self._place(name)] += 1
        return sums.ravel()

    def value(self, sums: Sums) -> dict[str, float]:
        """Macro over the types that occur in truth or answers."""
        table = sums.reshape(4, -1)
        found, either, predicted, actual = table.sum(1)
        precision, recall, micro = f1(found, predicted, actual)
        seen = [f1(t[0], t[2], t[3])[2] for t in table.T if t[2] or t[3]]
        return {
            "relation_precision": precision,
            "relation_recall": recall,
            "relation_f1": micro,
            "relation_macro_f1": ratio(sum(seen), len(seen)),
            "relation_f1_any_direction": f1(either, predicted, actual)[2],
        }

    def _directed(self, relations: Collection[Relation]) -> set[Relation]:
        turned = {
            Relation(one.type, *sorted((one.head, one.tail), key=repr))
            for one in relations
            if one.type in self.symmetric
        }
        return turned | {one for one in relations if one.type not in self.symmetric}

    def _place(self, name: str) -> int:
        if name not in self.types:
            raise DataError(f"the relation {name!r} is none of those declared: {self.types}")
        return self.types.index(name)


def _turned(relation: Relation) -> tuple[str, frozenset[object]]:
    return relation.type, frozenset((relation.head, relation.tail))
