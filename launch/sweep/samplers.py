"""Who proposes the next trial. What a trial is depends on (seed, number) and on what was told
before, never on when it is asked: a sweep that is started again proposes the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from launch.sweep.space import Choice, Dimension, Point, Space
from trainer.config.sections.sweep import SweepSection

MOST = 10_000  # trials of a sweep: one more is a slip of the keyboard


@dataclass(frozen=True)
class Told:
    """What a trial came to. `values`: one a metric; empty if it failed, which says nothing of its
    settings. `at`: (step, value) where it was behind and ended.
    """

    number: int
    values: tuple[float, ...] = ()
    at: tuple[int, float] | None = None
    is_bad: bool = False  # its settings made it diverge


class Sampler(Protocol):
    def ask(self, number: int) -> Point:
        """Of trial `number`, from 1; each number is asked for once, in order."""

    def tell(self, told: Told) -> None:
        """In the order in which trials ended."""


@dataclass(frozen=True)
class Grid:
    points: Sequence[Point]

    def ask(self, number: int) -> Point:
        return self.points[number - 1]

    def tell(self, told: Told) -> None:
        """A grid does not change its mind."""


@dataclass(frozen=True)
class AtRandom:
    """Each dimension on its own: one more in the space moves none of the others."""

    space: Space
    seed: int

    def ask(self, number: int) -> Point:
        return self.space.draw(lambda one: self._value(one, number))

    def tell(self, told: Told) -> None:
        """Chance has no memory."""

    def _value(self, one: Dimension, number: int) -> int | float:
        chance = random.Random(f"{self.seed}/{number}/{one.name}")
        if isinstance(one, Choice):
            return chance.randrange(len(one.alternatives))
        if not one.is_log:
            return (
                chance.randint(int(one.low), int(one.high))
                if one.is_whole
                else chance.uniform(one.low, one.high)
            )
        # A whole number owns what rounds to it, so that the first and the last count fully.
        margin = 0.5 if one.is_whole else 0.0
        low, high = math.log(one.low - margin), math.log(one.high + margin)
        value = math.exp(chance.uniform(low, high))
        value = min(max(value, one.low), one.high)
        return round(value) if one.is_whole else value


def sampler_of(section: SweepSection, space: Space) -> Sampler:
    """Raises: Refused if the library behind it is not installed."""
    if section.sampler == "grid":
        return Grid(list(islice(space.points(), MOST + 1)))
    if section.sampler == "random":
        return AtRandom(space, section.seed)
    from launch.sweep.optuna_sampler import OptunaSampler

    return OptunaSampler(section, space)
