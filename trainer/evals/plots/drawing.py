"""A drawing is a list of boxes, lines and words; here it becomes SVG, in png.py pixels.

Units: pixels, from the upper left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
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
class Words:
    """`y` is their middle; `at` says which of their ends `x` is."""

    x: float
    y: float
    text: str
    at: Literal["start", "middle", "end"] = "middle"
    colour: Colour = BLACK


@dataclass(frozen=True)
class Drawing:
    title: str
    width: int
    height: int
    shapes: tuple[Box | Line | Words, ...]


FONT_SIZE = 13


def svg(drawing: Drawing) -> str:
    size = f'width="{drawing.width}" height="{drawing.height}"'
    body = "\n".join(_shape(shape) for shape in drawing.shapes)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" '
        f'font-family="sans-serif" font-size="{FONT_SIZE}">\n'
        f"<title>{escape(drawing.title)}</title>\n{body}\n</svg>"
    )


def page(
    drawing: Drawing, *, header: Sequence[str] = (), rows: Sequence[Sequence[str]] = ()
) -> str:
    """A page that needs nothing but itself: the drawing, and a table below it."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in header)
    lines = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    table = f"<table>\n<tr>{cells}</tr>\n{lines}\n</table>" if rows else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f"<title>{escape(drawing.title)}</title>\n"
        "<style>body{font-family:sans-serif;margin:2em} td,th{padding:2px 10px;text-align:right} "
        "td:first-child,th:first-child{text-align:left}</style>\n"
        f"</head><body>\n<h1>{escape(drawing.title)}</h1>\n{svg(drawing)}\n{table}\n</body></html>\n"
    )


def blended(share: float, colour: Colour = BLUE) -> Colour:
    """From white (0) to `colour` (1)."""
    kept = min(max(share, 0.0), 1.0)
    red, green, blue = (round(255 + (c - 255) * kept) for c in colour)
    return red, green, blue


def _shape(shape: Box | Line | Words) -> str:
    if isinstance(shape, Box):
        where = f'x="{shape.x:.1f}" y="{shape.y:.1f}"'
        size = f'width="{shape.width:.1f}" height="{shape.height:.1f}"'
        return f'<rect {where} {size} fill="{_hex(shape.fill)}"/>'
    if isinstance(shape, Line):
        ends = f'x1="{shape.x:.1f}" y1="{shape.y:.1f}" x2="{shape.to_x:.1f}" y2="{shape.to_y:.1f}"'
        return f'<line {ends} stroke="{_hex(shape.colour)}"/>'
    where = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.at}"'
    style = f'dominant-baseline="central" fill="{_hex(shape.colour)}"'
    return f"<text {where} {style}>{escape(shape.text)}</text>"


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
