"""The page of a sweep: every trial in every figure, the best the darkest, text escaped."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from launch.__main__ import main
from launch.sweep.figures import history, parallel, shown, slices
from launch.sweep.folder import SweepFiles, write_sweep
from launch.sweep.journal import Journal, Trial
from launch.sweep.optuna_sampler import importances
from launch.sweep.page import figures, page, sweep_page
from launch.sweep.space import Choice, Condition, Interval, Space
from launch.sweep.table import SweepStatus
from tests.helpers.sweeps import section
from trainer.drawing.html import svg
from trainer.drawing.shapes import GREY, Curve, Drawing, Words
from trainer.errors import Exit

RATE = Interval("optimizer.learning_rate", 1e-5, 1e-1, is_log=True)
KIND = Choice("optimizer", (("optimizer=adamw",), ("optimizer=<sgd & more>",)))
MOMENTUM = Interval("optimizer.momentum", 0.0, 1.0, when=Condition("optimizer", 1))
SPACE = Space((RATE, KIND, MOMENTUM))


def trial(number: int, rate: float, *, kind: int = 0, state: str = "finished") -> Trial:
    value = (math.log10(rate) + 3) ** 2
    point: dict[str, Any] = {RATE.name: rate, KIND.name: kind}
    if kind:
        point[MOMENTUM.name] = 0.5
    done = state == "finished"
    return Trial(
        number,
        point,
        (f"optimizer.learning_rate={rate}",),
        state=state,  # type: ignore[arg-type]
        values=(value,) if done else (),
        at=(10, value) if state == "pruned" else None,
    )


RATES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 3e-4, 3e-3)
TRIALS = {n: trial(n, rate, kind=n % 2) for n, rate in enumerate(RATES, 1)}
TRIALS |= {8: trial(8, 5e-2, state="pruned"), 9: trial(9, 1e-3, state="failed")}
FOUND = shown(TRIALS, "min")


def dots(drawing: Drawing) -> list[Curve]:
    return [s for s in drawing.shapes if isinstance(s, Curve) and len(s.points) == 1]


def test_who_is_shown_and_who_is_best() -> None:
    assert [one.number for one in FOUND] == list(range(1, 9))  # the failed one has no value
    shares = {one.number: one.share for one in FOUND}
    assert shares[3] == 1.0
    assert min(shares.values()) == shares[1] == shares[5] == 0.0
    assert {one.number for one in shown(TRIALS, "max") if one.share == 1.0} == {1, 5}
    assert [one.number for one in FOUND if one.colour == GREY] == [8]


def test_the_history_has_a_dot_for_each_and_the_best_so_far() -> None:
    drawing = history(FOUND, "eval_loss", "min")
    assert len(dots(drawing)) == 8
    (line,) = (s for s in drawing.shapes if isinstance(s, Curve) and len(s.points) > 1)
    heights = [y for _, y in line.points]
    assert heights == sorted(heights)  # pixels from above: it only gets better
    last = max(y for dot in dots(drawing) for _, y in dot.points)
    assert heights[-1] == last


def test_slices_have_one_figure_a_dimension_on_its_own_scale() -> None:
    by_rate, by_kind, by_momentum = slices(FOUND, SPACE, "eval_loss")
    assert [len(dots(one)) for one in (by_rate, by_kind, by_momentum)] == [8, 8, 4]
    xs = sorted({round(dot.points[0][0]) for dot in dots(by_rate)})
    assert xs[0] == 80  # the ends of a logarithmic axis, decades evenly between
    decades = sorted(
        dot.points[0][0]
        for dot, one in zip(dots(by_rate), _drawn(), strict=True)
        if math.log10(one.point[RATE.name]).is_integer()
    )
    gaps = {round(b - a, 6) for a, b in pairwise(decades)}
    assert len(gaps) == 1
    names = {s.text for s in by_kind.shapes if isinstance(s, Words)}
    assert {"adamw", "<sgd & more>"} <= names


def _drawn() -> list[Any]:
    return sorted(FOUND, key=lambda each: (each.is_whole, each.share))


def test_parallel_coordinates_leave_out_what_does_not_apply() -> None:
    drawing = parallel(FOUND, SPACE, "eval_loss")
    lengths = [len(s.points) for s in drawing.shapes if isinstance(s, Curve)]
    assert sorted(lengths) == [3, 3, 3, 3, 4, 4, 4, 4]  # momentum of half of them
    lines = [s for s in drawing.shapes if isinstance(s, Curve)]
    assert lines[-1].colour == max(FOUND, key=lambda one: one.share).colour  # on top


def test_everything_is_within_its_figure() -> None:
    for drawing in figures(TRIALS, section(), SPACE, {"a.b": 0.75, "c": 0.25}):
        points = [p for s in drawing.shapes if isinstance(s, Curve) for p in s.points]
        assert all(0 <= x <= drawing.width and 0 <= y <= drawing.height for x, y in points)
        ElementTree.fromstring(svg(drawing))


def test_importance_finds_the_dimension_that_decides() -> None:
    pytest.importorskip("optuna", reason="comes with the extra `sweeps`")
    space = Space((RATE, Interval("model.dropout", 0.0, 0.5)))
    trials = [
        Trial(
            n,
            {RATE.name: 10 ** (-5 + 4 * ((n * 7) % 20) / 19), "model.dropout": (n * 3 % 20) / 40},
            (),
            state="finished",
            values=(abs(((n * 7) % 20) / 19 - 0.5),),
        )
        for n in range(1, 21)
    ]
    found = importances(section(), space, trials)
    assert found[RATE.name] > 0.7
    assert sum(found.values()) == pytest.approx(1.0)
    assert importances(section(), space, trials[:2]) == {}


def status(**changes: Any) -> SweepStatus:
    row = {"trial": 3, "state": "finished", "best": True, "eval_loss": 0.0, "settings": "a=<b>"}
    row |= {"gpu_hours": 0.5, "why": "", "run": "/x"}
    values: dict[str, Any] = {
        "sweep": "lr<1>",
        "state": "finished",
        "trials": {"finished": 1},
        "total": 1,
        "metrics": ["eval_loss"],
        "best": [row],
        "gpu_hours": 0.5,
        "left_s": None,
        "rows": [row],
        "folder": "/x",
    }
    return SweepStatus(**values | changes)


def test_a_page_has_everything_and_needs_nothing() -> None:
    text = sweep_page(status(), TRIALS, section(), SPACE)
    assert text.count("<svg") >= 5
    assert "<h1>lr&lt;1&gt;</h1>" in text
    assert "a=&lt;b&gt;" in text
    assert "&lt;sgd &amp; more&gt;" in text
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", text)
    assert "<tr class=best>" in text


def test_report_of_a_sweep_makes_its_page_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = SweepFiles(tmp_path / "lr")
    words = ["optimizer.learning_rate=tag(log,interval(1e-5,1e-1))", "optimizer=adamw,sgd"]
    identity = {"sweep": section(trials=9).model_dump(mode="json")}
    write_sweep(files, identity, {"overrides": words, "config_dirs": []})
    journal = Journal(files.trials)
    journal.ask_for(9)
    for number, rate in enumerate(RATES, 1):
        point = {RATE.name: rate, KIND.name: number % 2}
        journal.write("proposed", number, bracket=0, point=point, overrides=[f"a={rate}"])
        facts = {"state": "finished", "values": [float(number)], "rank_seconds": 1.0}
        journal.write("ended", number, **facts)
    assert main(["report", "lr", "--root", str(tmp_path)]) == Exit.DONE
    assert capsys.readouterr().out == f"{files.page}\n"
    text = files.page.read_text("utf-8")
    assert "eval_loss by optimizer.learning_rate" in text
    assert "lr: stopped; 7 of 9 trials (7 finished)" in text


def test_a_sweep_without_a_value_has_a_page_too() -> None:
    failed = {1: trial(1, 1e-3, state="failed")}
    drawn = figures(failed, section(), SPACE, {})
    assert drawn == []
    assert "no trial has reported a value yet" in page(status(rows=[], best=[]), drawn)
    alone = figures({1: trial(1, 1e-3)}, section(), SPACE, {})
    assert len(alone) == 2 + 2  # its momentum does not apply
