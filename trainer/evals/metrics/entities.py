"""F1 of named entities: type, first and last token must all be right.

Two readings of tags, those of seqeval 1.2.2: "default" is that of the CoNLL evaluation script,
which takes an I- without a B- for a start; "strict" counts only what the scheme allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np

from trainer.errors import Refused
from trainer.evals.metrics.base import Sums, f1, ratio
from trainer.evals.metrics.confusion import ClassRow

Entity = tuple[str, int, int]  # type, first token, one past the last

_ENDS = {"E", "S"}  # after these nothing goes on
_STARTS = {"B", "S"}
_SCHEMES = {"bio": "BIO", "bioes": "BIOES"}


@dataclass(frozen=True)
class EntityF1:
    """Sums: found, predicted and actual of each type.

    `types` are the declared ones, `entity_types(labels)`; `scheme` matters to the strict mode only.
    """

    types: tuple[str, ...]
    mode: Literal["default", "strict"] = "default"
    scheme: Literal["bio", "bioes"] = "bio"

    @property
    def size(self) -> int:
        return 3 * len(self.types)

    def sums_of(self, predicted: Sequence[str], reference: Sequence[str]) -> Sums:
        """Tags of one sentence, word by word: "B-PER", "I-PER", "O"."""
        assert len(predicted) == len(reference), "tags of two different sentences"
        chosen, actual = set(self.entities(predicted)), set(self.entities(reference))
        sums = np.zeros((3, len(self.types)))
        for row, entities in enumerate((chosen & actual, chosen, actual)):
            for kind, _, _ in entities:
                sums[row, self.types.index(kind)] += 1
        return sums.ravel()

    def entities(self, tags: Sequence[str]) -> list[Entity]:
        if self.mode == "default":
            return list(_lenient(tags))
        return list(_strict_bio(tags) if self.scheme == "bio" else _strict_bioes(tags))

    def table(self, sums: Sums) -> list[ClassRow]:
        found, predicted, actual = sums.reshape(3, -1)
        return [
            ClassRow(
                kind, *f1(found[t], predicted[t], actual[t]), int(actual[t]), int(predicted[t])
            )
            for t, kind in enumerate(self.types)
        ]

    def value(self, sums: Sums) -> dict[str, float]:
        """Micro over all entities, macro over the types that occur in truth or answers."""
        found, predicted, actual = sums.reshape(3, -1).sum(1)
        precision, recall, micro = f1(found, predicted, actual)
        seen = [row.f1 for row in self.table(sums) if row.examples or row.predicted]
        return {
            "entity_precision": precision,
            "entity_recall": recall,
            "entity_f1": micro,
            "entity_macro_f1": ratio(sum(seen), len(seen)),
        }


def entity_types(labels: Sequence[str], scheme: Literal["bio", "bioes"] = "bio") -> tuple[str, ...]:
    """The types that tags of these names can have, sorted. Raises: Refused for a foreign tag."""
    for label in labels:
        if label[:1] not in set(_SCHEMES[scheme]) or (label != "O" and label[1:2] not in ("", "-")):
            raise Refused(
                f"the tag {label!r} is not of {scheme.upper()}: tags look like B-PER, I-PER and O"
            )
    return tuple(sorted({_type(label) for label in labels if label != "O"}))


def _type(tag: str) -> str:
    """ "_" for a bare B or I, as in seqeval."""
    return tag[2:] or "_"


def _lenient(tags: Sequence[str]) -> Iterator[Entity]:
    """An entity goes on over tokens of its type, until something starts or ends one."""
    first = 0
    for index, (last, tag) in enumerate(pairwise(["O", *tags, "O"])):
        parted = last[0] in _ENDS or tag[0] in _STARTS or tag == "O" or _type(last) != _type(tag)
        if last != "O" and parted:
            yield _type(last), first, index
        if tag != "O" and (parted or last == "O"):
            first = index


def _strict_bio(tags: Sequence[str]) -> Iterator[Entity]:
    for first, tag in enumerate(tags):
        if tag[0] == "B":
            end = _run(tags, first + 1, _type(tag))
            yield _type(tag), first, end


def _strict_bioes(tags: Sequence[str]) -> Iterator[Entity]:
    for first, tag in enumerate(tags):
        if tag[0] == "S":
            yield _type(tag), first, first + 1
        elif tag[0] == "B":
            last = _run(tags, first + 1, _type(tag))
            if last < len(tags) and tags[last][0] == "E" and _type(tags[last]) == _type(tag):
                yield _type(tag), first, last + 1


def _run(tags: Sequence[str], start: int, kind: str) -> int:
    """One past the I- tags of this type from `start` on."""
    while start < len(tags) and tags[start][0] == "I" and _type(tags[start]) == kind:
        start += 1
    return start
