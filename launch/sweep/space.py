"""What a sweep searches: named dimensions, and what a point of them means as overrides. Pure.

A point is a mapping from dimension to a number, or to the place of an alternative in its list.
Dimensions stand in an order in which each comes after the one that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

Point = Mapping[str, int | float]


@dataclass(frozen=True)
class Condition:
    """The dimension `name` has the alternative `alternative` (its place in the list)."""

    name: str
    alternative: int


@dataclass(frozen=True)
class Choice:
    """One of several; each alternative is the overrides that it means, at least one."""

    name: str
    alternatives: tuple[tuple[str, ...], ...]
    when: Condition | None = None


@dataclass(frozen=True)
class Interval:
    """A number of the setting `name` from `low` to `high`, both included."""

    name: str
    low: float
    high: float
    is_whole: bool = False
    is_log: bool = False
    when: Condition | None = None


Dimension = Choice | Interval


@dataclass(frozen=True)
class Space:
    dimensions: tuple[Dimension, ...]

    @property
    def is_finite(self) -> bool:
        return all(isinstance(one, Choice) for one in self.dimensions)

    def overrides(self, point: Point) -> tuple[str, ...]:
        """What is put on the settings that all trials share."""
        found: list[str] = []
        for one in self.dimensions:
            if not holds(one.when, point):
                continue
            value = point[one.name]
            if isinstance(one, Choice):
                found += one.alternatives[int(value)]
            else:
                found.append(f"{one.name}={number_text(value)}")
        return tuple(found)

    def draw(self, value_of: Callable[[Dimension], int | float]) -> dict[str, int | float]:
        """A point, dimension by dimension; what does not apply is not asked for."""
        point: dict[str, int | float] = {}
        for one in self.dimensions:
            if holds(one.when, point):
                point[one.name] = value_of(one)
        return point

    def points(self) -> Iterator[Point]:
        """All of a finite space; the last dimension varies fastest, as in `train -m`."""
        yield from self._points(0, {})

    def _points(self, at: int, point: Point) -> Iterator[Point]:
        if at == len(self.dimensions):
            yield dict(point)
            return
        one = self.dimensions[at]
        if not holds(one.when, point):
            yield from self._points(at + 1, point)
            return
        assert isinstance(one, Choice), one
        for place in range(len(one.alternatives)):
            yield from self._points(at + 1, {**point, one.name: place})

    def corners(self, *, most: int = 64) -> list[Point]:
        """Points at the ends of every dimension, each alternative of a choice at least once, as far
        as `most` points go: what a schema is asked about before anything runs.
        """
        found: list[Point] = []
        for turn in (0, -1):
            found.append(self.draw(lambda one, turn=turn: _ends(one)[turn]))  # type: ignore[misc]
        for chosen in self.dimensions:
            for value in _ends(chosen):
                found.append(self._with(chosen, value))
        unique = {tuple(sorted(point.items())): point for point in found}
        return list(unique.values())[:most]

    def _with(self, chosen: Dimension, value: int | float) -> Point:
        """The first corner, but for `chosen` and for what it depends on."""
        forced: dict[str, int | float] = {chosen.name: value}
        named = {one.name: one for one in self.dimensions}
        when = chosen.when
        while when is not None:
            forced[when.name] = when.alternative
            when = named[when.name].when
        return self.draw(lambda one: forced.get(one.name, _ends(one)[0]))


def holds(when: Condition | None, point: Point) -> bool:
    """A condition on a dimension that does not apply itself does not hold."""
    return when is None or point.get(when.name) == when.alternative


def number_text(value: int | float) -> str:
    """As it is typed, and read back to the bit."""
    return repr(value)


def _ends(one: Dimension) -> list[int | float]:
    """In order; of a choice all places."""
    if isinstance(one, Choice):
        return list(range(len(one.alternatives)))
    return [int(one.low), int(one.high)] if one.is_whole else [one.low, one.high]
