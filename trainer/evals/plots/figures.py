"""The figures themselves: a confusion matrix, a diagram of calibration, scores by length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trainer.drawing.shapes import (
    BLACK,
    BLUE,
    GREY,
    RED,
    WHITE,
    Box,
    Drawing,
    Line,
    Shape,
    Words,
    blended,
)
from trainer.evals.metrics.calibration import Bin
from trainer.tasks.lengths import LengthBucket

_LONGEST_LABEL = 18
_MOST_NUMBERS = 24  # classes, beyond which cells are too small to be written in
_LABEL_WIDTH, _TOP, _MARGIN = 150, 50, 20


def confusion_figure(counts: NDArray[np.int64], labels: Sequence[str]) -> Drawing:
    """Rows are what examples are, columns what they were taken for.

    A cell is as dark as its share of the row: rare classes are seen as well as common ones.
    """
    classes = len(labels)
    cell = max(4, min(56, 900 // classes))
    written = classes <= _MOST_NUMBERS
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    shapes: list[Shape] = [Words(_LABEL_WIDTH, 15, "columns: predicted", "start")]
    for row in range(classes):
        y = _TOP + row * cell
        if written:
            shapes.append(Words(_LABEL_WIDTH - 6, y + cell / 2, _short(labels[row]), "end"))
            middle = _LABEL_WIDTH + (row + 0.5) * cell
            shapes.append(Words(middle, _TOP - 10, _short(labels[row], cell // 8)))
        for column in np.flatnonzero(counts[row]).tolist():
            x = _LABEL_WIDTH + column * cell
            share = float(shares[row, column])
            shapes.append(Box(x, y, cell, cell, blended(share, BLUE if row == column else RED)))
            if written:
                colour = WHITE if share > 0.5 else BLACK
                number = f"{counts[row, column]}"
                shapes.append(Words(x + cell / 2, y + cell / 2, number, colour=colour))
    side = classes * cell
    for edge in (0, side):
        shapes.append(Line(_LABEL_WIDTH, _TOP + edge, _LABEL_WIDTH + side, _TOP + edge))
        shapes.append(Line(_LABEL_WIDTH + edge, _TOP, _LABEL_WIDTH + edge, _TOP + side))
    size = (max(_LABEL_WIDTH + side + _MARGIN, 320), _TOP + side + _MARGIN)
    return Drawing("Confusion matrix", *size, tuple(shapes))


def calibration_figure(bins: Sequence[Bin]) -> Drawing:
    """How often answers of a confidence were right, beside the diagonal where they should be.

    A bar is as dark as its share of the answers.
    """
    side, left, top = 400, 60, 30
    total = max(sum(one.answers for one in bins), 1)
    most = max((one.answers for one in bins), default=0) or 1
    shapes: list[Shape] = []
    for one in bins:
        if one.answers:
            height = one.accuracy * side
            x, width = left + one.low * side, (one.high - one.low) * side
            colour = blended(0.25 + 0.75 * one.answers / most)
            shapes.append(Box(x, top + side - height, width - 1, height, colour))
            mark = top + side - one.confidence * side
            shapes.append(Line(x, mark, x + width - 1, mark, RED))
    shapes.append(Line(left, top + side, left + side, top, GREY))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes.append(Words(left + tick * side, top + side + 15, f"{tick:g}"))
        shapes.append(Words(left - 8, top + side - tick * side, f"{tick:g}", "end"))
    shapes.append(Line(left, top + side, left + side, top + side, BLACK))
    shapes.append(Line(left, top, left, top + side, BLACK))
    shapes.append(Words(left + side / 2, top + side + 35, f"confidence ({total:,} answers)"))
    shapes.append(Words(left, 12, "right answers (bars), mean confidence (red)", "start"))
    return Drawing("Calibration", left + side + _MARGIN, top + side + 50, tuple(shapes))


def lengths_figure(buckets: Sequence[LengthBucket]) -> Drawing:
    """The share of right answers in each bucket of lengths; a bar is as dark as its share of
    them."""
    height, left, top, bar = 300, 60, 30, 80
    most = max((one.terms for one in buckets), default=0) or 1
    bottom, right = top + height, left + bar * len(buckets)
    shapes: list[Shape] = [Words(left, 12, "share of right answers", "start")]
    for number, one in enumerate(buckets):
        x, tall = left + number * bar, one.share * height
        colour = blended(0.25 + 0.75 * one.terms / most)
        shapes.append(Box(x + 5, bottom - tall, bar - 10, tall, colour))
        middle = x + bar / 2
        shapes.append(Words(middle, bottom - tall - 8, f"{one.share:.3f}"))
        shapes.append(Words(middle, bottom + 15, length_name(one)))
        shapes.append(Words(middle, bottom + 32, f"{one.terms:,}", colour=GREY))
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        shapes.append(Words(left - 8, bottom - tick * height, f"{tick:g}", "end"))
    shapes.append(Line(left, bottom, right, bottom, BLACK))
    shapes.append(Line(left, top, left, bottom, BLACK))
    shapes.append(Words(left, bottom + 52, "tokens of the example; how many (grey)", "start"))
    return Drawing("Length", max(right + _MARGIN, 360), bottom + 70, tuple(shapes))


def length_name(bucket: LengthBucket) -> str:
    return f"over {bucket.low}" if bucket.high is None else f"{bucket.low + 1} to {bucket.high}"


def _short(label: str, longest: int = _LONGEST_LABEL) -> str:
    return label if len(label) <= max(longest, 3) else f"{label[: max(longest, 3) - 1]}\u2026"
