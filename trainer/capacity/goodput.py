"""Which share of a run's time becomes finished work, when things break: formulas and a simulation.

Letters, all in seconds: M mean time between interruptions; delta stall of a save; w from a save's
snapshot until it is durable (0: the stall holds the write); tau useful time between saves; D from
a failure until it is noticed; R from there to the first new step. Pure arithmetic, no clock.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat

_BISECTIONS = 200


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What an interruption and a save cost. Units: seconds."""

    stall_s: float  # delta
    write_s: float = 0.0  # w
    detect_s: float  # D
    restart_s: float  # R

    @property
    def outage_s(self) -> float:
        return self.detect_s + self.restart_s


@dataclass(frozen=True)
class Ran:
    """A simulated run. Units: seconds, except the counts."""

    work_s: float  # useful work at its end
    wall_s: float
    failures: int
    redone_s: float  # work lost at failures, and done again
    stalled_s: float

    @property
    def goodput(self) -> float:
        return self.work_s / self.wall_s if self.wall_s else 1.0


def goodput(parts: Parts, interval_s: float, mean_between_s: float) -> float:
    """Expected share of useful time under exponential failures, none inside an outage.

    Source: one committed segment of length L = tau + delta takes
    E[T] = (exp(L / M) - 1) (M + D + R + w) on average; goodput is tau / E[T].
    """
    segment = math.expm1((interval_s + parts.stall_s) / mean_between_s)
    return interval_s / (segment * (mean_between_s + parts.outage_s + parts.write_s))


def young(stall_s: float, mean_between_s: float) -> float:
    """Source: Young 1974, first-order optimum interval."""
    return math.sqrt(2 * stall_s * mean_between_s)


def daly(stall_s: float, mean_between_s: float) -> float:
    """Source: Daly 2006, the higher-order form for delta < 2 M; M beyond that."""
    if stall_s >= 2 * mean_between_s:
        return mean_between_s
    x = stall_s / (2 * mean_between_s)
    return young(stall_s, mean_between_s) * (1 + math.sqrt(x) / 3 + x / 9) - stall_s


def best_interval(stall_s: float, mean_between_s: float) -> float:
    """The interval of the highest `goodput`; it does not depend on D, R or w.

    Source: d/dtau of E[T]/tau = 0 gives tau = M (1 + W0(-exp(-(1 + delta / M)))), W0 by bisection.
    """
    wanted, low, high = -math.exp(-(1 + stall_s / mean_between_s)), -1.0, 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if middle * math.exp(middle) > wanted:
            high = middle
        else:
            low = middle
    return mean_between_s * (1 + low)


def exponential_gaps(mean_s: float, seed: int) -> Iterator[float]:
    """Endless running times between failures; the same for the same seed."""
    draw = random.Random(seed)
    while True:
        yield draw.expovariate(1 / mean_s)


def simulate(parts: Parts, gaps: Iterable[float], *, interval_s: float, work_s: float) -> Ran:
    """A run of `work_s` useful seconds that saves at every multiple of `interval_s` of them.

    `gaps`: how long it runs, from its first step after a start, until it is interrupted; drawn
    (`exponential_gaps`) or as they were seen. When they are used up nothing breaks any more.
    """
    run = _Simulated(parts, interval_s, work_s)
    for gap in chain(gaps, repeat(math.inf)):
        if run.live(gap):
            return run.ran()
    raise AssertionError("the last gap is infinite")


class _Simulated:
    def __init__(self, parts: Parts, interval_s: float, work_s: float) -> None:
        self._parts = parts
        self._interval_s = interval_s
        self._work_s = work_s
        self._wall = self._durable = self._redone = self._stalled = 0.0
        self._failures = 0

    def live(self, gap: float) -> bool:
        """From one start to its failure; True if the work ended before it."""
        at, left = self._durable, gap
        pending: list[tuple[float, float]] = []  # (durable from when on, work in it)
        while True:
            until = min(self._next_save(at), self._work_s)
            if left < until - at:
                at += left
                self._wall += left
                break
            self._wall += until - at
            left, at = left - (until - at), until
            if at >= self._work_s:
                return True
            stall = min(left, self._parts.stall_s)
            self._wall, self._stalled = self._wall + stall, self._stalled + stall
            if left < self._parts.stall_s:
                break
            left -= stall
            pending.append((self._wall + self._parts.write_s, at))
        self._fail(at, pending)
        return False

    def _fail(self, at: float, pending: list[tuple[float, float]]) -> None:
        written = [work for ready, work in pending if ready <= self._wall]
        self._durable = max([self._durable, *written])
        self._redone += at - self._durable
        self._failures += 1
        self._wall += self._parts.outage_s

    def _next_save(self, at: float) -> float:
        return (math.floor(at / self._interval_s + 1e-9) + 1) * self._interval_s

    def ran(self) -> Ran:
        return Ran(self._work_s, self._wall, self._failures, self._redone, self._stalled)
