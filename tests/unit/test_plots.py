"""Figures show the numbers they are made of, in a page and in pixels, whatever labels say."""

from __future__ import annotations

import io
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trainer.drawing.shapes import BLUE, RED, WHITE, blended
from trainer.evals.metrics.calibration import Calibration
from trainer.evals.metrics.confusion import Confusion
from trainer.evals.plots.figures import calibration_figure, confusion_figure
from trainer.evals.plots.files import write_calibration, write_confusion
from trainer.evals.plots.png import png

LABELS = ("plain", "<b>&\"'", "a very long label of a class indeed")


class _Texts(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.found.append(data)


def test_a_confusion_matrix_is_written_as_a_page_and_a_picture(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow, which reads the picture, is absent")
    metric = Confusion(LABELS)
    sums = metric.sums_of([0] * 7 + [1] * 3 + [2, 0], [0] * 10 + [2, 2])
    html, picture = write_confusion(tmp_path / "plots", metric, sums)
    read = _Texts(html.read_text("utf-8"))
    assert {"7", "3", "plain", LABELS[1], "0.8750", "a very long label\u2026"} <= set(read.found)
    assert "b" not in read.tags  # what a label says is no markup
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", html.read_text("utf-8"))
    with pillow.open(picture) as image:
        # Cells of 56 pixels from (150, 50): a diagonal cell of 0.7, a mistake of 0.3, none.
        found = [image.getpixel((150 + column * 56 + 5, 50 + 5)) for column in range(3)]
    assert found == [blended(0.7, BLUE), blended(0.3, RED), WHITE]
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        "confusion.html",
        "confusion.png",
    ]


def test_without_pillow_there_is_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    metric = Calibration(bins=4)
    files = write_calibration(tmp_path, metric, metric.sums_of([0.9, 0.8, 0.1], [1, 0, 0]))
    assert [file.name for file in files] == ["calibration.html"]
    assert {"0.750 to 1.000", "0.8500", "0.5000"} <= set(_Texts(files[0].read_text()).found)


def test_a_bar_is_as_high_as_answers_are_right() -> None:
    pillow = pytest.importorskip("PIL.Image", reason="Pillow, which reads the picture, is absent")
    metric = Calibration(bins=4)
    sums = metric.sums_of([0.9] * 4 + [0.6], [1, 1, 1, 0, 0])
    made = png(calibration_figure(metric.diagram(sums)))
    assert made is not None
    with pillow.open(io.BytesIO(made)) as image:
        x = 60 + 350  # within the last quarter; its bar ends at three quarters of 400 pixels
        column = [image.getpixel((x, y)) for y in range(image.height)]
    assert column[30 + 100 + 2] == column[428] == blended(1.0)
    assert column[30 + 100 - 2] == WHITE
    assert column[30 + 40] == RED  # the mean confidence, 0.9


def test_letters_that_the_font_lacks_are_no_boxes() -> None:
    drawn = [
        png(confusion_figure(np.eye(1, dtype=np.int64), [x])) for x in ("\u00c9t\u00e9", "Ete")
    ]
    assert drawn[0] == drawn[1]


def test_many_classes_and_no_answers_are_drawn_too() -> None:
    many = confusion_figure(np.eye(300, dtype=np.int64), [str(n) for n in range(300)])
    assert max(many.width, many.height) < 1500
    assert not [shape for shape in many.shapes if getattr(shape, "text", "") == "17"]
    assert png(many)
    empty = Calibration()
    assert png(calibration_figure(empty.diagram(np.zeros(empty.size))))
    assert png(confusion_figure(np.zeros((2, 2), np.int64), ["a", "b"]))
