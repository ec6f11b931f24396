"""Check 3: over the run's lineage every sample is consumed once, in its step, and none besides.

Ranks note samples when they consume them. A start of all ranks is a generation; what it did from
the step on at which the next generation began was lost and is not in the lineage.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Consumed:
    """One micro-step of one rank. `time`: seconds since the epoch, orders generations."""

    rank: int
    world: int
    pid: int
    time: float
    ids: tuple[int, ...]


@dataclass
class _Generation:
    world: int
    pids: dict[int, int] = field(default_factory=dict)  # rank -> pid
    ids: list[int] = field(default_factory=list)


def wrong_samples(
    lines: Iterable[Consumed], *, batch: int, steps: int, skipped: Collection[int] = ()
) -> list[str]:
    """`batch`: samples of a step; step s consumes [(s-1) batch, s batch). `skipped`: sample ids."""
    generations = list(_generations(sorted(lines, key=lambda line: line.time)))
    kept: Counter[int] = Counter()
    for number, one in enumerate(generations):
        end = _first_of(generations[number + 1 :], batch=batch)
        kept.update(i for i in one.ids if i < end)
    wanted = set(range(steps * batch)) - set(skipped)
    found = []
    for name, ids in (
        ("never", sorted(wanted - kept.keys())),
        ("more than once", sorted(i for i, n in kept.items() if n > 1)),
        ("and should not have been", sorted(kept.keys() - wanted)),
    ):
        if ids:
            found.append(f"sample {ids[0]} was consumed {name} ({len(ids)} such)")
    return found


def _generations(lines: Sequence[Consumed]) -> Iterator[_Generation]:
    current: _Generation | None = None
    for line in lines:
        same = (
            current is not None
            and line.world == current.world
            and current.pids.get(line.rank, line.pid) == line.pid
        )
        if not same:
            if current is not None:
                yield current
            current = _Generation(line.world)
        assert current is not None
        current.pids[line.rank] = line.pid
        current.ids += line.ids
    if current is not None:
        yield current


def _first_of(later: Sequence[_Generation], *, batch: int) -> float:
    """The first sample of the earliest step that a later generation made again."""
    firsts = [min(one.ids) for one in later if one.ids]
    return min(firsts) // batch * batch if firsts else math.inf
