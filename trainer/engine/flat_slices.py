"""All trained parameters as one flat vector, cut into blocks, and blocks into one slice a rank.

    flat     [ group 0: p0 p1 p2 ..... pad | group 1: p3 p4 .. pad | pad ]
    blocks   |      |      |      |        |      |      |         |     |     BLOCK elements each
    slices   [ rank 0             | rank 1                | rank 2       ]     whole blocks

Where blocks lie does not depend on the number of ranks. A group of the optimizer begins at a block,
so that a rank's part of it is whole blocks: vector units never meet a remainder, whose last bits
may be rounded otherwise.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from trainer.engine.fragments import Region

BLOCK = 1 << 14


@dataclass(frozen=True)
class Place:
    """One parameter lies at elements [start, start + numel) of the flat vector."""

    name: str
    parameter: nn.Parameter
    start: int


class FlatSlices:
    """Units: elements of the flat vector. `groups`: the parameters of each optimizer group."""

    def __init__(
        self, groups: Sequence[Sequence[tuple[str, nn.Parameter]]], *, rank: int, world_size: int
    ) -> None:
        self._places: list[Place] = []
        self._bounds: list[tuple[int, int]] = []  # of each group
        at = 0
        for group in groups:
            first = at
            for name, p in group:
                self._places.append(Place(name, p, at))
                at += p.numel()
            at += -at % BLOCK
            self._bounds.append((first, at))
        self._starts = [place.start for place in self._places]
        self.num_blocks = at // BLOCK
        self.slice = -(-self.num_blocks // world_size) * BLOCK  # elements of each rank's
        self.first = rank * self.slice  # where this rank's begins

    def parts(self) -> list[tuple[int, int]]:
        """For each group the part of it that is in this rank's slice, counted from its begin."""
        return [
            (min(max(a - self.first, 0), self.slice), min(max(b - self.first, 0), self.slice))
            for a, b in self._bounds
        ]

    def regions(self, owners: Sequence[tuple[int, nn.Parameter]]) -> list[Region]:
        """What this rank owns of each parameter. `owners` begin at these places of the slice."""
        found = []
        for begin, owner in owners:
            start = self.first + begin
            for place, lo, hi in self._overlaps(start, start + owner.numel()):
                shape, at = tuple(place.parameter.shape), place.start
                found.append(Region(place.name, shape, lo - at, hi - at, owner, lo - start))
        return found

    def read(
        self, start: int, out: torch.Tensor, of: Callable[[nn.Parameter], torch.Tensor | None]
    ) -> None:
        """Fill `out` with what `of` gives for the parameters from `start` on; else with 0."""
        out.zero_()
        for place, lo, hi in self._overlaps(start, start + len(out)):
            values = of(place.parameter)
            if values is not None:
                here = values.reshape(-1)[lo - place.start : hi - place.start]
                out[lo - start : hi - start].copy_(here)

    def write(self, start: int, values: torch.Tensor) -> None:
        """Set the parameters from `start` on."""
        for place, lo, hi in self._overlaps(start, start + len(values)):
            here = place.parameter.detach().view(-1)[lo - place.start : hi - place.start]
            here.copy_(values[lo - start : hi - start])

    def _overlaps(self, start: int, stop: int) -> Iterator[tuple[Place, int, int]]:
        """Parameters with elements in [start, stop), and which of them, in the flat vector."""
        for i in range(max(bisect_right(self._starts, start) - 1, 0), len(self._places)):
            place = self._places[i]
            if place.start >= stop:
                return
            lo, hi = max(start, place.start), min(stop, place.start + place.parameter.numel())
            if lo < hi:
                yield place, lo, hi


def block_squares(values: torch.Tensor) -> torch.Tensor:
    """Sum of the squares of each block of `values`; fp64, (blocks,).

    Element-wise operations only, in a fixed tree: how many blocks there are, threads and devices
    change no bit, as they might those of `torch.sum`.
    """
    elements = 1 << 17 if values.device.type == "cpu" else 1 << 24  # at once; a CPU's cache
    parts = [
        tree_sum(part.view(-1, BLOCK).double().square_()) for part in torch.split(values, elements)
    ]
    return torch.cat(parts)


def tree_sum(values: torch.Tensor) -> torch.Tensor:
    """Sum over the last dimension, filled up with zeros to a power of two, halves on halves."""
    size = values.shape[-1]
    missing = (1 << (size - 1).bit_length()) - size
    values = nn.functional.pad(values, (0, missing)) if missing else values
    while (size := values.shape[-1]) > 1:
        values = values[..., : size // 2] + values[..., size // 2 :]
    return values[..., 0]
