"""Curves over steps, and bars of shares: the two figures of a run.

Values that are not finite are left out of a curve; who draws says how many there were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.drawing.shapes import (
    BLUE,
    GREY,
    RED,
    Box,
    Colour,
    Curve,
    Drawing,
    Line,
    Shape,
    Words,
)

PALETTE: tuple[Colour, ...] = (
    BLUE, RED, (40, 140, 80), (150, 90, 170), (200, 130, 20), (90, 90, 90), (20, 150, 160),
    (170, 60, 120),
)  # fmt: skip
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 30, 28
_MOST_POINTS = 600  # of a curve: a screen has no more columns
_BAR, _NAME, _VALUE = 22, 130, 340  # room for the words behind the longest bar


@dataclass(frozen=True)
class Series:
    """`points`: (x, y), by x."""

    name: str
    points: tuple[tuple[float, float], ...]


def curves_figure(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[tuple[float, str]] = (),
    size: tuple[int, int] = (640, 240),
) -> Drawing:
    """`marks`: (x, words) of vertical lines. Series have the colours of PALETTE, in turn."""
    width, height = size
    shown = [Series(one.name, thinned(_finite(one.points))) for one in series]
    points = [point for one in shown for point in one.points]
    if not points:
        return Drawing(title, width, height, (Words(width / 2, height / 2, "nothing to show"),))
    frame = _Frame.around(points, width=width, height=height)
    shapes: list[Shape] = [Words(_LEFT, 14, title, "start"), *frame.axes()]
    for x, words in marks:
        if frame.low_x <= x <= frame.high_x:
            at = frame.x(x)
            shapes += [
                Line(at, _TOP, at, height - _BOTTOM),
                Words(at + 3, _TOP + 6, words, "start"),
            ]
    for number, one in enumerate(shown):
        colour = PALETTE[number % len(PALETTE)]
        if one.points:
            shapes.append(Curve(tuple(frame.at(point) for point in one.points), colour))
        if len(shown) > 1:
            x = _LEFT + 150 + number * (width - _LEFT - 150) / len(shown)
            shapes.append(Words(x, 14, one.name, "start", colour))
    return Drawing(title, width, height, tuple(shapes))


def bars_figure(title: str, rows: Sequence[tuple[str, float, str]], *, width: int = 860) -> Drawing:
    """Rows of (name, value, words behind its bar), one below the other, from zero."""
    most = max((value for _, value, _ in rows), default=0.0) or 1.0
    shapes: list[Shape] = [Words(_NAME, 14, title, "start")]
    for number, (name, value, words) in enumerate(rows):
        y = _TOP + number * _BAR
        length = (width - _NAME - _VALUE) * max(value, 0.0) / most
        shapes.append(Words(_NAME - 8, y + _BAR / 2, name, "end"))
        shapes.append(Box(_NAME, y + 3, length, _BAR - 6, PALETTE[0]))
        shapes.append(Words(_NAME + length + 6, y + _BAR / 2, words, "start"))
    return Drawing(title, width, _TOP + len(rows) * _BAR + 10, tuple(shapes))


def thinned(
    points: Sequence[tuple[float, float]], *, most: int = _MOST_POINTS
) -> tuple[tuple[float, float], ...]:
    """At most `most` points: of each stretch the lowest and the highest, so no peak is lost."""
    if len(points) <= most:
        return tuple(points)
    stretches = max(1, (most - 2) // 2)
    kept = {0, len(points) - 1}
    for number in range(stretches):
        begin = number * len(points) // stretches
        end = (number + 1) * len(points) // stretches
        stretch = range(begin, end)
        kept.add(min(stretch, key=lambda at: points[at][1]))
        kept.add(max(stretch, key=lambda at: points[at][1]))
    return tuple(points[at] for at in sorted(kept))


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers within [low, high]: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def number_text(value: float) -> str:
    """As short as it is told apart on an axis: 0.003, 12, 1,500, 2.5M."""
    size = abs(value)
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if size >= unit:
            return f"{value / unit:.3g}{name}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 or size == 0 else f"{value:.1e}"


@dataclass(frozen=True)
class _Frame:
    """From values to pixels."""

    low_x: float
    high_x: float
    low_y: float
    high_y: float
    width: int
    height: int

    @classmethod
    def around(cls, points: Sequence[tuple[float, float]], *, width: int, height: int) -> _Frame:
        xs, ys = [x for x, _ in points], [y for _, y in points]
        low, high = min(ys), max(ys)
        room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
        return cls(min(xs), max(max(xs), min(xs) + 1e-9), low - room, high + room, width, height)

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (self.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM)

    def at(self, point: tuple[float, float]) -> tuple[float, float]:
        return self.x(point[0]), self.y(point[1])

    def axes(self) -> list[Shape]:
        left, right, bottom = _LEFT, self.width - _RIGHT, self.height - _BOTTOM
        shapes: list[Shape] = []
        for value in ticks(self.low_y, self.high_y):
            y = self.y(value)
            shapes += [Line(left, y, right, y, (225, 225, 225))]
            shapes += [Words(left - 6, y, number_text(value), "end")]
        for value in ticks(self.low_x, self.high_x, about=6):
            shapes += [Words(self.x(value), bottom + 14, number_text(value))]
        return [
            *shapes,
            Line(left, bottom, right, bottom, GREY),
            Line(left, _TOP, left, bottom, GREY),
        ]


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
