"""Examples that a model sees in parts: windows of a long context, of which one holds the answer.

A task whose answer to an example is the best over its parts scores the parts alone; the parts of
one example may lie in other rows, on other ranks. trainer/evals/whole_examples.py finds the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch


@dataclass(frozen=True)
class Part:
    """`score`: of the best answer within it; `least`: what the example takes its minimum of.

    `gains`: sums that the example's answer adds, by what is chosen: this part's answer, or none.
    """

    example: str  # what names it among all held-out examples
    number: int  # of the part, from 0
    parts: int  # that the example has
    score: float
    least: float
    gains: tuple[tuple[float, ...], tuple[float, ...]]


@runtime_checkable
class ScoredInParts(Protocol):
    """What a Task has beside `score`, if its answers come from parts."""

    def score_parts(
        self, model: torch.nn.Module, batch: Any
    ) -> tuple[dict[str, float], list[Part]]:
        """What `score` says, and the parts of examples that the batch holds. One forward."""

    def sums_of_best(self, best: Sequence[Part], *, left_out: int) -> Mapping[str, float]:
        """Sums of the answers to whole examples: the best part of each, with its `least` that of
        the example. The names never depend on the parts. `left_out`: examples of which a part was
        not scored, because only so many rows were asked for."""
