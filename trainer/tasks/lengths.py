"""Right answers by the length of the example: sums a bucket, which add up as all scores do.

Shapes: R rows, T positions, E examples of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from trainer.evals.metrics.base import Sums, named, ratio, taken
from trainer.evals.metrics.confusion import Confusion

EDGES = (16, 32, 64, 128, 256, 512, 1024)  # the most tokens of each bucket but the last
_BUCKETS = len(EDGES) + 1
_NAME = "lengths"
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class LengthBucket:
    """Examples of more than `low` and at most `high` tokens, special ones among them."""

    low: int
    high: int | None  # None: as long as they come
    terms: int
    right: int

    @property
    def share(self) -> float:
        return ratio(self.right, self.terms)


@runtime_checkable
class Figured(Protocol):
    """What a Task has beside `values`, if there is more to see in its sums."""

    def buckets(self, sums: Mapping[str, float]) -> list[LengthBucket]:
        """Those that hold anything, shortest first."""

    def confusion(self, sums: Mapping[str, float]) -> tuple[Confusion, Sums] | None:
        """What was taken for what, where an answer is one of several classes."""


def lengths_of_places(documents_RT: torch.Tensor) -> Ints:
    """Tokens of the example that each place belongs to; of padding, how much of it the row has."""
    documents: Ints = documents_RT.cpu().numpy()
    of_row = np.arange(len(documents))[:, None] * (int(documents.max(initial=0)) + 1)
    counts = np.bincount((of_row + documents).ravel())
    found: Ints = counts[of_row + documents]
    return found


def lengths_of_examples(fields: Mapping[str, torch.Tensor]) -> Ints:
    """Of a batch's examples; those of no weight have any."""
    first_E = fields["first_E"].clamp(min=0).cpu().numpy()
    found: Ints = lengths_of_places(fields["documents_RT"]).ravel()[first_E]
    return found


def sums_by_length(lengths: NDArray[Any], right: NDArray[Any]) -> dict[str, float]:
    """`lengths` of what counts, and whether each was right; both flat."""
    bucket = np.searchsorted(EDGES, lengths)
    terms = np.bincount(bucket, minlength=_BUCKETS)
    correct = np.bincount(bucket, weights=right, minlength=_BUCKETS)
    return named(_NAME, np.concatenate([terms, correct]).astype(np.float64))


def buckets_of(sums: Mapping[str, float]) -> list[LengthBucket]:
    terms, right = taken(_NAME, 2 * _BUCKETS, sums).astype(int).reshape(2, -1).tolist()
    edges = (0, *EDGES, None)
    every = zip(edges[:-1], edges[1:], terms, right, strict=True)
    return [LengthBucket(low or 0, high, t, r) for low, high, t, r in every if t]
