"""A rank that is slower than the others at what it does alone, before it waits for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

WINDOW = 20  # steps whose median counts
_EVERY = 5  # new steps from one look to the next
_SLOW, _WELL = 1.5, 1.25  # times the others' median: called slow above, well again below
_NOISE_S = 0.002  # differences below this are the machine's


@dataclass(frozen=True)
class Straggler:
    """`work_s`: median seconds of a step before its first collective; `others_s`: of the others."""

    rank: int
    step: int
    work_s: float
    others_s: float

    @property
    def ratio(self) -> float:
        return self.work_s / max(self.others_s, 1e-6)


class Stragglers:
    """Remembers who is slow, so that each is told once."""

    def __init__(self) -> None:
        self._slow: set[int] = set()
        self._last = 0

    def look(self, worked: Mapping[int, Mapping[int, float]]) -> tuple[list[Straggler], list[int]]:
        """Who became slow and who is well again. `worked`: rank -> step -> seconds."""
        if len(worked) < 2:
            return [], []
        common = sorted(set.intersection(*(set(steps) for steps in worked.values())))[-WINDOW:]
        if len(common) < WINDOW or common[-1] < self._last + _EVERY:
            return [], []
        self._last = common[-1]
        own = {rank: median(steps[s] for s in common) for rank, steps in worked.items()}
        slow, well = [], []
        for rank, seconds in own.items():
            others = median(other for r, other in own.items() if r != rank)
            if rank in self._slow:
                if seconds < _WELL * others:
                    self._slow.discard(rank)
                    well.append(rank)
            elif seconds >= _SLOW * others and seconds - others >= _NOISE_S:
                self._slow.add(rank)
                slow.append(Straggler(rank, self._last, seconds, others))
        return slow, well
