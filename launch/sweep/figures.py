"""What a sweep has found, as drawings: history, slices, parallel coordinates. Pure.

A trial that went whole is a dark dot or line, the darker the better; one that was ended on the way
is grey and counts as what it had come to.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from launch.sweep.journal import Trial
from launch.sweep.space import Choice, Dimension, Point, Space
from trainer.drawing.curves import number_text, ticks
from trainer.drawing.shapes import (
    BLUE,
    GREY,
    RED,
    Colour,
    Curve,
    Drawing,
    Line,
    Shape,
    Words,
    blended,
)

_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 34, 34
_DARK_GREY: Colour = (110, 110, 110)  # words between lines
_LONGEST = 22  # characters of an alternative beside an axis


@dataclass(frozen=True)
class Shown:
    """`share`: 1 for the best of all, 0 for the worst."""

    number: int
    point: Point
    value: float
    is_whole: bool
    share: float

    @property
    def colour(self) -> Colour:
        return blended(0.25 + 0.75 * self.share, BLUE) if self.is_whole else GREY


def shown(trials: Mapping[int, Trial], goal: str) -> list[Shown]:
    """Those with a finite value of the first metric, by number."""
    found = [
        (one, one.values[0] if one.values else one.at[1] if one.at else math.nan)
        for _, one in sorted(trials.items())
    ]
    finite = [(one, value) for one, value in found if math.isfinite(value)]
    order = sorted({value for _, value in finite}, reverse=goal == "min")
    last = max(len(order) - 1, 1)
    return [
        Shown(one.number, one.point, v, one.state == "finished", order.index(v) / last)
        for one, v in finite
    ]


def history(found: Sequence[Shown], metric: str, goal: str) -> Drawing:
    """Each trial's value, and the best so far of those that went whole."""
    frame = _Frame(
        860,
        300,
        _Axis.of([float(one.number) for one in found]),
        _Axis.of([one.value for one in found]),
    )
    best: list[tuple[float, float]] = []
    for one in (each for each in found if each.is_whole):
        before = best[-1][1] if best else one.value
        value = min(before, one.value) if goal == "min" else max(before, one.value)
        best += [(one.number, before), (one.number, value)]
    line = [Curve(tuple(frame.at(*point) for point in best), RED)] if len(best) > 2 else []
    return frame.drawing(f"{metric} by trial", [*line, *_dots(frame, found, None)])


def slices(found: Sequence[Shown], space: Space, metric: str) -> list[Drawing]:
    """The value over each dimension alone."""
    drawn = []
    for one in space.dimensions:
        there = [each for each in found if one.name in each.point]
        if there:
            ys = _Axis.of([each.value for each in there])
            frame = _Frame(420, 260, _axis_of(one), ys)
            drawn.append(frame.drawing(f"{metric} by {one.name}", _dots(frame, there, one)))
    return drawn


def parallel(found: Sequence[Shown], space: Space, metric: str) -> Drawing:
    """Each trial as a line through its settings to its value; the best are drawn last."""
    names = [one.name for one in space.dimensions]
    axes = [*map(_axis_of, space.dimensions), _Axis.of([one.value for one in found])]
    width, height = max(860, 170 * len(axes)), 340
    gap = (width - _LEFT - 3 * _RIGHT) / max(len(axes) - 1, 1)
    xs = [_LEFT + number * gap for number in range(len(axes))]
    shapes: list[Shape] = []
    for x, axis, name in zip(xs, axes, [*names, metric], strict=True):
        shapes += [Line(x, _TOP, x, height - _BOTTOM), Words(x, height - 12, _short(name))]
        for share, text in axis.marks():
            shapes.append(Words(x + 5, _up(share, height), text, "start", _DARK_GREY))
    for one in sorted(found, key=lambda each: (each.is_whole, each.share)):
        values = [one.point.get(name) for name in names]
        points = [
            (x, _up(axis.share(float(value)), height))
            for x, axis, value in zip(xs, axes, [*values, one.value], strict=True)
            if value is not None
        ]
        shapes.append(Curve(tuple(points), one.colour))
    title = Words(_LEFT, 14, "settings and what they came to", "start")
    return Drawing("parallel coordinates", width, height, (title, *shapes))


def _dots(frame: _Frame, found: Iterable[Shown], by: Dimension | None) -> list[Shape]:
    """Over one dimension, or over the trials' numbers."""
    order = sorted(found, key=lambda each: (each.is_whole, each.share))
    return [
        Curve((frame.at(one.number if by is None else one.point[by.name], one.value),), one.colour)
        for one in order
    ]


@dataclass(frozen=True)
class _Axis:
    """`names`: of alternatives, which lie at 0, 1, 2 ..."""

    low: float
    high: float
    is_log: bool = False
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Sequence[float]) -> _Axis:
        low, high = min(values), max(values)
        room = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
        return cls(low - room, high + room)

    def share(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5

    def marks(self) -> list[tuple[float, str]]:
        if self.names:
            return [(self.share(at), name) for at, name in enumerate(self.names)]
        if not self.is_log:
            return [(self.share(x), number_text(x)) for x in ticks(self.low, self.high)]
        first, last = (math.log10(end) for end in (self.low, self.high))
        powers = [10.0**n for n in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1)]
        chosen = powers if len(powers) > 1 else [self.low, self.high]
        return [(self.share(x), number_text(x)) for x in chosen]


def _axis_of(one: Dimension) -> _Axis:
    if isinstance(one, Choice):
        names = tuple(_short(_value_of(each)) for each in one.alternatives)
        return _Axis(-0.5, len(names) - 0.5, names=names)
    return _Axis(float(one.low), float(one.high), is_log=one.is_log)


def _value_of(alternative: Sequence[str]) -> str:
    """`1e-3` of `optimizer.learning_rate=1e-3`; several settings as they are."""
    return alternative[0].partition("=")[2] if len(alternative) == 1 else " ".join(alternative)


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _up(share: float, height: int) -> float:
    return height - _BOTTOM - share * (height - _TOP - _BOTTOM)


@dataclass(frozen=True)
class _Frame:
    """From values to pixels."""

    width: int
    height: int
    xs: _Axis
    ys: _Axis

    def at(self, x: float, y: float) -> tuple[float, float]:
        return self._x(self.xs.share(x)), _up(self.ys.share(y), self.height)

    def _x(self, share: float) -> float:
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def drawing(self, title: str, shapes: Sequence[Shape]) -> Drawing:
        right, bottom = self.width - _RIGHT, self.height - _BOTTOM
        around: list[Shape] = [
            Words(_LEFT, 14, title, "start"),
            Line(_LEFT, bottom, right, bottom),
            Line(_LEFT, _TOP, _LEFT, bottom),
        ]
        for share, text in self.ys.marks():
            around.append(Words(_LEFT - 6, _up(share, self.height), text, "end"))
        for share, text in self.xs.marks():
            around.append(Words(self._x(share), bottom + 14, text))
        return Drawing(title, self.width, self.height, (*around, *shapes))
