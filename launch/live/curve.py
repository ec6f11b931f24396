"""A curve as lines of text: eight dots a character where the terminal can show them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from launch.live.follow import Point

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # of U+2800, by column and row


def drawn(points: Sequence[Point], *, width: int, height: int, ascii_only: bool) -> list[str]:
    """`height` lines of `width` characters: a scale at the left, the curve at its right.

    Points that share a column are shown by their mean, others are joined; what is no number is
    left out.
    """
    kept = [(step, value) for step, value in points if math.isfinite(value)]
    if not kept:
        return []
    low, high = min(v for _, v in kept), max(v for _, v in kept)
    labels = [_number(high), *[""] * (height - 2), _number(low)] if height > 1 else [_number(high)]
    margin = max(map(len, labels))
    across, down = (1, 1) if ascii_only else (2, 4)
    columns = max(1, width - margin - 2) * across
    rows = _rows(kept, columns=columns, rows=height * down, low=low, high=high)
    lines = _plain(rows, height) if ascii_only else _braille(rows, height)
    return [f"{label:>{margin}} |{line}" for label, line in zip(labels, lines, strict=True)]


def _rows(
    points: Sequence[Point], *, columns: int, rows: int, low: float, high: float
) -> list[tuple[int, int]]:
    """For each column the rows (0: the top) that it fills, so that neighbours touch."""
    found: list[tuple[int, int]] = []
    before: int | None = None
    for value in _columns(points, columns):
        share = (value - low) / (high - low) if high > low else 0.5
        row = round((1 - share) * (rows - 1))
        step_to = row if before is None or before == row else before + (1 if row > before else -1)
        found.append((min(row, step_to), max(row, step_to)))
        before = row
    return found


def _columns(points: Sequence[Point], columns: int) -> list[float]:
    """A value for each: the mean of its points, or what lies between those of its neighbours."""
    begin, end = points[0][0], points[-1][0]
    if begin == end:
        return [points[-1][1]]
    sums: dict[int, list[float]] = {}
    for step, value in points:
        column = round((step - begin) / (end - begin) * (columns - 1))
        sums.setdefault(column, []).append(value)
    means = [(column, sum(values) / len(values)) for column, values in sorted(sums.items())]
    found = [means[0][1]]
    for (left, a), (right, b) in itertools.pairwise(means):
        found += [a + (b - a) * n / (right - left) for n in range(1, right - left + 1)]
    return found


def _plain(rows: Sequence[tuple[int, int]], height: int) -> list[str]:
    return ["".join("*" if at[0] <= row <= at[1] else " " for at in rows) for row in range(height)]


def _braille(rows: Sequence[tuple[int, int]], height: int) -> list[str]:
    cells = [[0] * math.ceil(len(rows) / 2) for _ in range(height)]
    for column, at in enumerate(rows):
        for row in range(at[0], at[1] + 1):
            cells[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
    return ["".join(chr(0x2800 + dots) if dots else " " for dots in line) for line in cells]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
