"""How often a run should save: the interval of the best goodput, within limits. Pure, no clock.

The optimum is that of trainer/capacity/goodput.py. It is flat: a factor of two either way costs
about a point, so measurements need not be exact and the interval need not follow every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.capacity.goodput import Parts, best_interval, goodput

_PRIOR_INTERRUPTIONS = 2.0  # so much the assumed rate counts against what is seen
_RANK_HOURS = 50_000.0  # between interruptions of one accelerator; Llama 3 report, sec. 3.3.4
_FADING_S = 30 * 86400.0  # time constant: what is seen fades with it
_DECADES = 8
_FREE_AGAIN = 1.2  # times the write: the next save finds the writer done
_HYSTERESIS = 0.2
_LARGEST_CHANGE = 2.0
_STRETCHES = (1.5, 1.4, 1.3, 1.2, 1.1)
_STRETCH_COST = 0.0025  # of goodput, for keeping within the stall budget
_OUTLIVED = 4.0  # so many failures the assumed share counts against what is seen
_MOST_OUTLIVED = 0.95
_COPY_RATE = 1e9  # bytes a second of one rank, until a save was measured
_WRITE_RATE = 0.2e9


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What saving costs here. `stall_s` of training, `write_s` until durable. Units: seconds."""

    stall_s: float
    write_s: float
    step_s: float


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`lost_s`: work that a failure may cost. `stall_share`: of the time, for saving."""

    lost_s: float = 1800.0
    stall_share: float = 0.01
    time_limit_s: float | None = None  # of the job; four saves fall into it


@dataclass(frozen=True)
class Failures:
    """Seen so far: running time and failures, both faded by age; `count` is not."""

    weighted: float = 0.0
    running_s: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class Outlived:
    """Failures after which the run went on from memory, of those seen while states were kept there.

    `share`: how many do, before any was seen.
    """

    share: float = 0.0
    seen: int = 0
    of: int = 0

    @property
    def expected(self) -> float:
        """Source: binomial, prior Beta(4 share, 4 (1 - share)), posterior mean; 0.95 at most."""
        if not self.share:
            return 0.0
        return min((_OUTLIVED * self.share + self.seen) / (_OUTLIVED + self.of), _MOST_OUTLIVED)


IN_NO_MEMORY = Outlived()


def outlived(nodes: int, *, seen: int = 0, of: int = 0) -> Outlived:
    """With states in memory. One node loses them with its machine, several lose them together."""
    return Outlived(0.5 if nodes == 1 else 0.8, seen, of)


@dataclass(frozen=True)
class Choice:
    """`steps` between saves; `why` in one line."""

    steps: int
    why: str


def assumed(*, rank_bytes: float, all_bytes: float, asynchronous: bool, step_s: float) -> Costs:
    """What a save may cost before one was measured. Low on purpose: the first one comes early."""
    write_s = all_bytes / _WRITE_RATE
    stall_s = rank_bytes / _COPY_RATE if asynchronous else write_s
    return Costs(stall_s=stall_s, write_s=write_s, step_s=step_s)


def faded(spans: Sequence[tuple[float, float, bool]], now: float) -> Failures:
    """`spans`: (start, end, whether it ended in a failure) of attempts, by one clock."""
    weighted = running_s = 0.0
    for start, end, failed in spans:
        # The integral of exp(-(now - t) / T) over the span.
        since, until = (math.exp((t - now) / _FADING_S) for t in (start, end))
        running_s += _FADING_S * max(until - since, 0.0)
        weighted += until if failed else 0.0
    return Failures(weighted, running_s, sum(failed for *_, failed in spans))


def mean_between_s(seen: Failures, *, ranks: int) -> float:
    """The inverse of the rate's posterior mean.

    Source: failures are Poisson; at rate r0, one in 50,000 rank-hours, the conjugate prior
    Gamma(a, a / r0), a = 2, has the posterior mean (a + k) / (a / r0 + T). A small run may fail far
    more often than its size says, so the prior is a mixture: r0, 10 r0, 100 r0 ... each a hundred
    times less likely than the one before, weighed by what they say of k failures in T.
    """
    a, k, t = _PRIOR_INTERRUPTIONS, seen.weighted, seen.running_s
    assumed_s = _RANK_HOURS * 3600.0 / ranks
    spread = [a * assumed_s / 10.0**j for j in range(_DECADES)]
    logs = [
        -j * math.log(100.0) + a * math.log(b / (b + t)) + (k * math.log(t / (b + t)) if t else 0.0)
        for j, b in enumerate(spread)
    ]
    weights = [math.exp(log - max(logs)) for log in logs]
    rates = [(a + k) / (b + t) for b in spread]
    mean = sum(w * r for w, r in zip(weights, rates, strict=True)) / sum(weights)
    return 1.0 / mean


def wanted_s(costs: Costs, between_s: float, limits: Limits) -> tuple[float, str]:
    """The interval in seconds and what decided it."""
    best = best_interval(max(costs.stall_s, 1e-6), between_s)
    wanted, why = best, f"{best:,.0f} s give the best goodput"
    budget = costs.stall_s / limits.stall_share
    if wanted < budget:
        wanted = min(budget, best * _affordable(costs, best, between_s))
        if wanted > best:
            why = f"{wanted:,.0f} s: the best is {best:,.0f} s, longer ones stall less"
    longest, reason = limits.lost_s, "no failure may cost more work"
    if limits.time_limit_s is not None and limits.time_limit_s / 4 < longest:
        longest, reason = limits.time_limit_s / 4, "four saves fall into the time limit"
    if wanted > longest:
        wanted, why = longest, f"{longest:,.0f} s: {reason} (the best goodput: {best:,.0f} s)"
    shortest = _FREE_AGAIN * costs.write_s
    if wanted < shortest:
        wanted = shortest
        why = f"{shortest:,.0f} s: a save must be written before the next (wanted: {best:,.0f} s)"
    return wanted, why


def _affordable(costs: Costs, best_s: float, between_s: float) -> float:
    """The largest stretch of the interval that costs next to no goodput."""
    parts = Parts(stall_s=costs.stall_s, detect_s=0.0, restart_s=0.0)
    most = goodput(parts, best_s, between_s)
    fitting = (
        f for f in _STRETCHES if most - goodput(parts, f * best_s, between_s) <= _STRETCH_COST
    )
    return next(fitting, 1.0)


def choose(
    costs: Costs,
    seen: Failures,
    *,
    ranks: int,
    limits: Limits,
    current: int | None,
    memory: Outlived = IN_NO_MEMORY,
) -> Choice:
    """The next interval. `current`: the one in force, which only a clear difference changes,
    and never by more than a factor of two. None: there is none.

    `memory`: of failures that states in memory outlive, none costs the work since the last save.
    """
    between_s = mean_between_s(seen, ranks=ranks)
    seconds, decided = wanted_s(costs, between_s / (1 - memory.expected), limits)
    wanted = max(1, round(seconds / costs.step_s))
    steps = wanted if current is None else _moved(current, wanted)
    facts = (
        f"a save stalls {costs.stall_s:.3g} s and takes {costs.write_s:.3g} s, a step "
        f"{costs.step_s:.3g} s, a failure comes each {between_s / 3600:,.3g} h ({seen.count} seen)"
    )
    if memory.share:
        facts += f", of which memory outlives {memory.expected:.0%} ({memory.seen} of {memory.of})"
    half = f"; {wanted:,} in the end" if steps != wanted else ""
    return Choice(steps, f"every {steps:,} steps{half}: {facts}; {decided}")


def _moved(current: int, wanted: int) -> int:
    if abs(wanted - current) <= _HYSTERESIS * current:
        return current
    least = math.ceil(current / _LARGEST_CHANGE)
    return min(max(wanted, least), int(current * _LARGEST_CHANGE))
