"""The smallest honest engine: it holds its rank's share of flat tensors, cut as ZeRO cuts them.

plain   rank 0 holds everything
zero1   two parameter groups (matrices, vectors), each laid end to end and cut evenly
zero3   every tensor cut evenly
blocks  small blocks dealt out in turn: nothing a reader could guess
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from math import prod

import torch

from trainer.engine.base import FragmentSource, HeldFragment, read_all
from trainer.records.fragment import Fragment

Shapes = Sequence[tuple[str, tuple[int, ...]]]

# Odd sizes, a scalar, one-element tensors, more ranks than elements, and small beside large.
SHAPES: Shapes = (
    ("embed.weight", (97, 11)),
    ("layers.0.norm.weight", (11,)),
    ("layers.0.mlp.weight", (13, 11)),
    ("layers.1.norm.weight", (11,)),
    ("layers.1.mlp.weight", (13, 11)),
    ("scale", ()),
    ("head.bias", (1,)),
)
ADAM = ("master", "exp_avg", "exp_avg_sq")
LAYOUTS = ("plain", "zero1", "zero3", "blocks")


class SliceEngine:
    """Only what checkpoints need of an engine: fragments, load, layout."""

    device = torch.device("cpu")

    def __init__(
        self,
        cut: str,
        rank: int,
        world_size: int,
        *,
        shapes: Shapes = SHAPES,
        kinds: Sequence[str] = ADAM,
    ) -> None:
        self._layout = shapes
        self.step = -1
        owned = list(_owned(cut, rank, world_size, shapes))
        self.held = [
            HeldFragment(Fragment(name, kind, shape, a, b), torch.zeros(b - a))
            for name, shape, a, b in owned
            for kind in kinds
        ]

    def fragments(self) -> Iterator[HeldFragment]:
        yield from self.held

    def layout(self) -> Shapes:
        return self._layout

    def load(self, source: FragmentSource, *, step: int) -> None:
        read_all(source, [(held.fragment, held.values) for held in self.held])
        self.step = step

    def fill(self, seed: int) -> SliceEngine:
        """The values that training would have reached at step `seed`, whatever the cut."""
        for held in self.held:
            f = held.fragment
            held.values.copy_(expected(f.name, f.kind, f.shape, seed)[f.start : f.stop])
        return self

    def differs(self, seed: int) -> list[str]:
        """The fragments that do not hold exactly what `fill(seed)` would give."""
        return [
            f"{held.fragment}"
            for held in self.held
            if not torch.equal(held.values, expected_part(held.fragment, seed))
        ]


def expected(name: str, kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """A whole flat tensor whose every element tells name, kind, position and step apart."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name}/{kind}/{seed}".encode()))
    return torch.randn(prod(shape), generator=generator)


def expected_part(f: Fragment, seed: int) -> torch.Tensor:
    return expected(f.name, f.kind, f.shape, seed)[f.start : f.stop]


def _owned(
    cut: str, rank: int, world_size: int, shapes: Shapes
) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    """(name, shape, start, stop) of what this rank holds; empty ones too, as engines may."""
    if cut == "zero1":
        yield from _owned_flat([s for s in shapes if len(s[1]) > 1], rank, world_size)
        yield from _owned_flat([s for s in shapes if len(s[1]) < 2], rank, world_size)
        return
    for number, (name, shape) in enumerate(shapes):
        n = prod(shape)
        if cut == "plain" and rank == 0:
            yield name, shape, 0, n
        elif cut == "zero3":
            share = -(-n // world_size)
            yield name, shape, min(rank * share, n), min((rank + 1) * share, n)
        elif cut == "blocks":
            for block, start in enumerate(range(0, n, 7)):
                if (block + number) % world_size == rank:
                    yield name, shape, start, min(start + 7, n)


def _owned_flat(
    group: Shapes, rank: int, world_size: int
) -> Iterator[tuple[str, tuple[int, ...], int, int]]:
    share = -(-sum(prod(shape) for _, shape in group) // world_size)
    first, last, at = rank * share, (rank + 1) * share, 0
    for name, shape in group:
        a, b = max(first - at, 0), min(last - at, prod(shape))
        at += prod(shape)
        if a < b:
            yield name, shape, a, b
