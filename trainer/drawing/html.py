"""Drawings as SVG, and pages that need nothing but themselves."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from trainer.drawing.shapes import FONT_SIZE, Box, Colour, Curve, Drawing, Line, Shape


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


def _shape(shape: Shape) -> str:
    if isinstance(shape, Box):
        where = f'x="{shape.x:.1f}" y="{shape.y:.1f}"'
        size = f'width="{shape.width:.1f}" height="{shape.height:.1f}"'
        return f'<rect {where} {size} fill="{_hex(shape.fill)}"/>'
    if isinstance(shape, Line):
        ends = f'x1="{shape.x:.1f}" y1="{shape.y:.1f}" x2="{shape.to_x:.1f}" y2="{shape.to_y:.1f}"'
        return f'<line {ends} stroke="{_hex(shape.colour)}"/>'
    if isinstance(shape, Curve):
        return _curve(shape)
    where = f'x="{shape.x:.1f}" y="{shape.y:.1f}" text-anchor="{shape.at}"'
    style = f'dominant-baseline="central" fill="{_hex(shape.colour)}"'
    return f"<text {where} {style}>{escape(shape.text)}</text>"


def _curve(curve: Curve) -> str:
    if len(curve.points) == 1:
        x, y = curve.points[0]
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{_hex(curve.colour)}"/>'
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in curve.points)
    return f'<polyline points="{points}" fill="none" stroke="{_hex(curve.colour)}"/>'


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)
