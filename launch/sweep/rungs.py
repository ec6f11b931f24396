"""Who goes on, from what trials came to at the same steps. Pure; costs are smaller where better.

    rungs       first_step, first_step * factor, ... below the last step
    asha        as trials come: one goes on from a rung if it is among the best 1/factor of those
                that have been there (the first always is)
    halving     all of a bracket meet at a rung; the best 1/factor of them go on
    median      from first_step on: ended once it is worse than the median of what min_trials or
                more others came to at the same step

Sources: asha: Li et al. 2018, A System for Massively Parallel Hyperparameter Tuning, alg. 2 (as
rules for stopping, not promoting); median: Golovin et al. 2017, Google Vizier, sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

Points = Sequence[tuple[int, float]]  # (step, value), by step


def rungs(*, first_step: int, factor: int, total: int) -> tuple[int, ...]:
    found = []
    step = first_step
    while step < total:
        found.append(step)
        step *= factor
    return tuple(found)


def at_step(points: Points, step: int) -> float | None:
    """The first value at that step or after it; None if it is not there yet."""
    return next((value for at, value in points if at >= step), None)


def goes_on(mine: float, others: Sequence[float], *, factor: int) -> bool:
    """`others`: what the others came to at this rung so far."""
    ordered = sorted([mine, *others])
    return mine <= ordered[max(1, len(ordered) // factor) - 1]


def best_of(costs: Mapping[int, float], *, factor: int) -> list[int]:
    """The numbers of the best 1/factor, at least one; of equals those that came first."""
    ordered = sorted(costs, key=lambda number: (costs[number], number))
    return sorted(ordered[: max(1, len(ordered) // factor)])


def is_behind(
    mine: Points, others: Sequence[Points], *, first_step: int, min_trials: int
) -> int | None:
    """The step at which it is worse than the median of the others; None: nowhere."""
    if not mine or mine[-1][0] < first_step:
        return None
    step, value = mine[-1]
    there = [cost for points in others if (cost := at_step(points, step)) is not None]
    return step if len(there) >= min_trials and value > median(there) else None
