"""A drawing is a list of boxes, lines and words; html.py makes SVG of it, png.py pixels.

Units: pixels, from the upper left corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Colour = tuple[int, int, int]
BLACK, WHITE, GREY, BLUE, RED = (30, 30, 30), (255, 255, 255), (190, 190, 190), (31, 98, 170), (
    190, 60, 50,
)  # fmt: skip


@dataclass(frozen=True)
class Box:
    x: float
    y: float
    width: float
    height: float
    fill: Colour


@dataclass(frozen=True)
class Line:
    x: float
    y: float
    to_x: float
    to_y: float
    colour: Colour = GREY


@dataclass(frozen=True)
class Curve:
    """Points from left to right, joined; one alone is a dot."""

    points: tuple[tuple[float, float], ...]
    colour: Colour = BLUE


@dataclass(frozen=True)
class Words:
    """`y` is their middle; `at` says which of their ends `x` is."""

    x: float
    y: float
    text: str
    at: Literal["start", "middle", "end"] = "middle"
    colour: Colour = BLACK


Shape = Box | Line | Curve | Words


@dataclass(frozen=True)
class Drawing:
    title: str
    width: int
    height: int
    shapes: tuple[Shape, ...]


FONT_SIZE = 13


def blended(share: float, colour: Colour = BLUE) -> Colour:
    """From white (0) to `colour` (1)."""
    kept = min(max(share, 0.0), 1.0)
    red, green, blue = (round(255 + (c - 255) * kept) for c in colour)
    return red, green, blue
