"""Scores over examples that were seen in parts, wherever the parts lie: exact in any world.

Ranks tell each other four numbers a part and never a text: which examples there are, how many of
their parts were scored, the best score and the least of each, and, of equals, the first part. Each
best part then adds its gains on the rank that has it. Shapes: P parts of all ranks, N examples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from trainer.dist.world import World
from trainer.tasks.parts import Part

_DIGITS = 2**52  # a float64 keeps integers below 2**53


def best_parts(world: World, parts: Sequence[Part]) -> tuple[list[Part], int]:
    """Of this rank's parts those that are the best of their whole example, `least` being that of
    the example; and how many examples, of this rank's share, lack a part. Collective.
    """
    mine_P = np.array([_number_of(part.example) for part in parts], dtype=np.int64)
    known_N = _all_numbers(world, mine_P)
    at_P = np.searchsorted(known_N, mine_P)
    size = len(known_N)
    seen_N = np.zeros(size)
    np.add.at(seen_N, at_P, 1.0)
    seen_N = np.array(world.sum(seen_N.tolist()))
    best_2N = np.full((2, size), -np.inf)
    np.maximum.at(best_2N[0], at_P, [part.score for part in parts])
    np.maximum.at(best_2N[1], at_P, [-part.least for part in parts])
    best_2N = np.array(world.max(best_2N.ravel().tolist())).reshape(2, size)
    first_N = np.full(size, -np.inf)
    for part, n in zip(parts, at_P.tolist(), strict=True):
        if part.score == best_2N[0, n]:
            first_N[n] = max(first_N[n], -part.number)
    first_N = np.array(world.max(first_N.tolist()))
    best, left_out = [], 0
    for part, n in zip(parts, at_P.tolist(), strict=True):
        if part.score != best_2N[0, n] or -part.number != first_N[n]:
            continue
        if seen_N[n] < part.parts:
            left_out += 1
        else:
            best.append(replace(part, least=float(-best_2N[1, n])))
    return best, left_out


def _all_numbers(world: World, mine_P: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers of all ranks' examples, sorted, each once."""
    place = world.place
    counts = [0.0] * place.world_size
    counts[place.rank] = float(len(mine_P))
    sizes = [int(n) for n in world.sum(counts)]
    begin = sum(sizes[: place.rank])
    every_P = np.zeros(sum(sizes))
    every_P[begin : begin + len(mine_P)] = mine_P
    return np.unique(np.array(world.sum(every_P.tolist())).astype(np.int64))


def _number_of(example: str) -> int:
    """52 bits of a hash: of a million examples, two share theirs with a chance of 1 in 10,000."""
    digest = hashlib.sha256(example.encode()).digest()
    return int.from_bytes(digest[:8], "big") % _DIGITS
