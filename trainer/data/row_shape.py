"""How a step is cut up into rows, and what rows come from.

Row k of a step sits at micro-step m, rank r, place j with k = (m*W + r)*b + j; rows with k >= B
exist only to make all ranks run alike, and weigh nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from trainer.data.order import Indices

Store = TypeVar("Store", covariant=True)


@dataclass(frozen=True, kw_only=True)
class RowShape:
    """How a step is cut up. Units: rows; `sequence_length` tokens."""

    global_batch_size: int  # B
    micro_batch_size: int  # b
    sequence_length: int
    packing: bool

    def micro_steps(self, world_size: int) -> int:
        return -(-self.global_batch_size // (self.micro_batch_size * world_size))

    def rows_of(self, rank: int, world_size: int) -> Indices:
        """Row numbers k of this rank's micro-batches: (micro-steps, b), some >= B."""
        starts = (np.arange(self.micro_steps(world_size)) * world_size + rank)[:, None]
        return starts * self.micro_batch_size + np.arange(self.micro_batch_size)


@dataclass(frozen=True)
class StreamSource(Generic[Store]):
    """One store and its share. `name` decides the order: renaming a source reorders it."""

    name: str
    store: Store
    weight: float
