"""Figures in a folder: NAME.html always, NAME.png where Pillow is."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from trainer.drawing.html import page
from trainer.drawing.shapes import Drawing
from trainer.evals.metrics.base import Sums
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.confusion import Confusion
from trainer.evals.plots.figures import (
    calibration_figure,
    confusion_figure,
    length_name,
    lengths_figure,
)
from trainer.evals.plots.png import png
from trainer.tasks.confidence import Calibrated
from trainer.tasks.lengths import Figured, LengthBucket


def write_confusion(folder: Path, metric: Confusion, sums: Sums) -> list[Path]:
    """confusion.html, with a table of precision, recall and F1 a class, and confusion.png."""
    header = ("class", "precision", "recall", "F1", "examples", "predicted")
    rows = [
        (row.label, *(f"{s:.4f}" for s in (row.precision, row.recall, row.f1)),
         f"{row.examples:,}", f"{row.predicted:,}")
        for row in metric.table(sums)
    ]  # fmt: skip
    drawing = confusion_figure(metric.counts(sums), metric.labels)
    return write_figure(folder, "confusion", drawing=drawing, header=header, rows=rows)


def write_calibration(folder: Path, metric: Calibration, sums: Sums) -> list[Path]:
    """calibration.html, with a table of bins, and calibration.png."""
    header = ("confidence", "answers", "mean confidence", "right")
    bins = metric.diagram(sums)
    rows = [
        (
            f"{b.low:.3f} to {b.high:.3f}",
            f"{b.answers:,}",
            f"{b.confidence:.4f}",
            f"{b.accuracy:.4f}",
        )
        for b in bins
    ]
    drawing = calibration_figure(bins)
    return write_figure(folder, "calibration", drawing=drawing, header=header, rows=rows)


def write_lengths(folder: Path, buckets: Sequence[LengthBucket]) -> list[Path]:
    """lengths.html, with a table of buckets, and lengths.png."""
    header = ("tokens", "answers", "right", "share")
    rows = [
        (length_name(one), f"{one.terms:,}", f"{one.right:,}", f"{one.share:.4f}")
        for one in buckets
    ]
    return write_figure(
        folder, "lengths", drawing=lengths_figure(buckets), header=header, rows=rows
    )


def write_task_figures(folder: Path, task: object, sums: Mapping[str, float]) -> list[Path]:
    """All that there is to see in a task's sums; no files for a task that shows nothing."""
    written: list[Path] = []
    if isinstance(task, Calibrated):
        calibration = task.calibration(sums)
        if calibration is not None and calibration[1].any():
            written += write_calibration(folder, *calibration)
    if not isinstance(task, Figured):
        return written
    confusion = task.confusion(sums)
    if confusion is not None and confusion[1].any():
        written += write_confusion(folder, *confusion)
    if buckets := task.buckets(sums):
        written += write_lengths(folder, buckets)
    return written


def write_figure(
    folder: Path,
    name: str,
    *,
    drawing: Drawing,
    header: Sequence[str] = (),
    rows: Sequence[Sequence[str]] = (),
) -> list[Path]:
    """The files written; each appears whole or not at all. For one rank: not collective."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {"html": page(drawing, header=header, rows=rows).encode(), "png": png(drawing)}
    written = []
    for ending, content in contents.items():
        if content is not None:
            path = folder / f"{name}.{ending}"
            part = path.with_suffix(f".{ending}.part")
            part.write_bytes(content)
            os.replace(part, path)
            written.append(path)
    return written
