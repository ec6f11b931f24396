"""Which trials meet at which steps. Pure.

    asha        nobody waits: each is judged at every rung by those that were there before it
    halving     all trials that were asked for at once are one bracket, with every rung
    pbt         all of them, every first_step steps; see population.py
    hyperband   brackets of several sizes, one after another: many trials with every rung, fewer
                that are first judged at the second rung, and so on to a few that run whole. Which
                of them is right depends on how early steps tell; this asks them all

Source: Li et al. 2018, Hyperband, JMLR 18(185), alg. 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle

from launch.sweep.rungs import rungs
from trainer.config.sections.sweep import PrunerSection

MEETING = ("halving", "hyperband", "pbt")  # kinds whose trials wait for each other
_ALL = 10**9


@dataclass(frozen=True)
class Bracket:
    """Trials `first` to `last`, and the steps of its rungs."""

    first: int
    last: int
    steps: tuple[int, ...]


def brackets_of(
    rules: PrunerSection, totals: Sequence[int], *, last_step: int
) -> tuple[Bracket, ...]:
    """`totals`: how many trials were asked for, each time that it was more. Those that are added
    meet among themselves."""
    if rules.kind not in ("asha", *MEETING):
        return ()
    if rules.kind == "pbt":
        return (Bracket(1, _ALL, tuple(range(rules.first_step, last_step, rules.first_step))),)
    steps = rungs(first_step=rules.first_step, factor=rules.factor, total=last_step)
    if rules.kind == "asha":
        return (Bracket(1, max(totals, default=0), steps),)
    found, first = [], 1
    for total in totals:
        shapes = cycle(_shapes(steps, rules.factor) if rules.kind == "hyperband" else [(total, 0)])
        while first <= total:
            size, skipped = next(shapes)
            last = min(first + size - 1, total)
            found.append(Bracket(first, last, steps[skipped:]))
            first = last + 1
    return tuple(found)


def _shapes(steps: Sequence[int], factor: int) -> list[tuple[int, int]]:
    """(trials, rungs left out) of the brackets of one round; each costs about the same."""
    most = len(steps)
    return [(-(-(most + 1) * factor**s // (s + 1)), most - s) for s in range(most, -1, -1)]


def steps_of(number: int, brackets: Sequence[Bracket]) -> tuple[int, ...]:
    """The rungs of a trial; none where it belongs to no bracket."""
    return next((one.steps for one in brackets if one.first <= number <= one.last), ())
