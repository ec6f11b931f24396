"""A drawing as a PNG; the only door to Pillow, which comes with TensorBoard."""

from __future__ import annotations

import io
import unicodedata
from typing import Any

from trainer.drawing.shapes import FONT_SIZE, WHITE, Box, Curve, Drawing, Line, Shape

_ANCHORS = {"start": "lm", "middle": "mm", "end": "rm"}


def png(drawing: Drawing) -> bytes | None:
    """None where Pillow, or the library that it draws letters with, is missing."""
    try:
        from PIL import Image, ImageDraw, ImageFont, features
    except ImportError:
        return None
    if not features.check("freetype2"):
        return None
    image = Image.new("RGB", (drawing.width, drawing.height), WHITE)
    canvas = ImageDraw.Draw(image)
    font = ImageFont.load_default(FONT_SIZE)
    for shape in drawing.shapes:
        _draw(canvas, shape, font=font)
    made = io.BytesIO()
    image.save(made, "PNG")
    return made.getvalue()


def _draw(canvas: Any, shape: Shape, *, font: Any) -> None:
    if isinstance(shape, Box):
        corner = (shape.x + shape.width - 1, shape.y + shape.height - 1)
        if corner[0] >= shape.x and corner[1] >= shape.y:
            canvas.rectangle(((shape.x, shape.y), corner), fill=shape.fill)
    elif isinstance(shape, Line):
        canvas.line((shape.x, shape.y, shape.to_x, shape.to_y), fill=shape.colour)
    elif isinstance(shape, Curve):
        canvas.line(shape.points, fill=shape.colour)
        if len(shape.points) == 1:
            canvas.circle(shape.points[0], 2, fill=shape.colour)
    else:
        anchor = _ANCHORS[shape.at]
        text = _drawable(shape.text)
        canvas.text((shape.x, shape.y), text, fill=shape.colour, font=font, anchor=anchor)


def _drawable(text: str) -> str:
    """Pillow's own font has ASCII and the ellipsis: accents go, other scripts become "?"."""
    plain = (c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c))
    return "".join(c if c.isascii() or c == "\u2026" else "?" for c in plain)
