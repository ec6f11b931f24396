"""Which files can hold a range: found out while saving, looked up while loading. Pure.

A rank's own table says exactly what it holds. The manifest has room for a hint only, 200 bytes a
rank, so that a reader among thousands of files opens the few that matter. A hint may name too
many files, never too few; where a rank's pieces are scattered, neighbours are drawn together until
at most three spans are left.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise

from trainer.records.fragment import Fragment
from trainer.records.manifest import MAX_SPANS, Manifest

Shapes = Sequence[tuple[str, tuple[int, ...]]]
Span = tuple[int, int]


def even_share(elements: int, rank: int, world_size: int) -> Span:
    """Rank's elements of a tensor cut evenly, the last ones short (ZeRO-3's partition)."""
    share = -(-elements // world_size)
    return min(rank * share, elements), min((rank + 1) * share, elements)


def is_even(fragments: Iterable[Fragment], rank: int, world_size: int) -> bool:
    """Whether every fragment lies within this rank's even share of its tensor."""
    for f in fragments:
        first, last = even_share(_elements(f.shape), rank, world_size)
        if f.start < first or f.stop > last:
            return False
    return True


def positions(sizes: Iterable[int]) -> list[int]:
    """Where each tensor begins when all are laid end to end, and where the last one ends."""
    return list(accumulate(sizes, initial=0))


def spans(fragments: Iterable[Fragment], begins: Mapping[str, int]) -> tuple[Span, ...]:
    """At most three spans that cover the fragments, closing the smallest gaps first."""
    held = sorted({(begins[f.name] + f.start, begins[f.name] + f.stop) for f in fragments})
    merged: list[Span] = []
    for first, last in held:
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    gaps = sorted(range(1, len(merged)), key=lambda i: merged[i][0] - merged[i - 1][1])
    cuts = sorted(gaps[len(gaps) - (MAX_SPANS - 1) :]) if len(merged) > MAX_SPANS else None
    if cuts is None:
        return tuple(merged)
    bounds = [0, *cuts, len(merged)]
    return tuple((merged[a][0], merged[b - 1][1]) for a, b in pairwise(bounds))


class FileIndex:
    """Which rank files can hold elements of a tensor. A lookup costs O(log files + answer)."""

    def __init__(self, manifest: Manifest) -> None:
        self._even = manifest.rule == "even"
        self._world_size = manifest.world_size
        self._elements = {t.name: t.elements for t in manifest.tensors}
        begins = positions(t.elements for t in manifest.tensors)
        self._begins = {t.name: at for t, at in zip(manifest.tensors, begins, strict=False)}
        held = sorted((a, b, r) for r, f in enumerate(manifest.files) for a, b in f.spans)
        self._firsts = [a for a, _, _ in held]
        self._held = held
        # The largest end so far tells a walk to the left when no earlier span can reach.
        self._reach = list(accumulate((b for _, b, _ in held), max))

    def files(self, name: str, start: int, stop: int) -> list[int]:
        """Indices into `Manifest.files`, ascending; `stop` > `start`."""
        if self._even:
            share = -(-self._elements[name] // self._world_size)
            return list(range(start // share, (stop - 1) // share + 1))
        first, last = self._begins[name] + start, self._begins[name] + stop
        found = set()
        i = bisect.bisect_left(self._firsts, last) - 1
        while i >= 0 and self._reach[i] > first:
            if self._held[i][1] > first:
                found.add(self._held[i][2])
            i -= 1
        return sorted(found)


def _elements(shape: Iterable[int]) -> int:
    product = 1
    for dim in shape:
        product *= dim
    return product
