"""A report says what the folder says, of killed runs too, and needs nothing but itself."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest

from launch.commands import compare, report
from launch.report.differing import differing
from launch.report.facts import read_facts
from tests.helpers.told_run import told_run, write_run_json
from trainer.drawing.curves import Series, curves_figure, number_text, thinned, ticks
from trainer.drawing.shapes import Curve, Words
from trainer.errors import Exit, Refused
from trainer.observers.jsonl import JsonLines
from trainer.records.run_files import RunFiles
from trainer.reports import GuardReport


def test_each_step_counts_once_and_every_second_has_its_place(tmp_path: Path) -> None:
    facts = read_facts(told_run(tmp_path))
    assert facts.curves.steps == tuple(range(1, 61))
    assert facts.account.wall_s == pytest.approx(200)
    assert sum(facts.account.seconds.values()) == pytest.approx(200)
    assert facts.account.steps_redone == 10
    assert facts.rank_seconds == 2 * (80 + 90)
    assert [(one.number, one.from_step, one.cause) for one in facts.attempts] == [
        (1, None, "crash"),
        (2, 30, None),
    ]


def test_the_page_of_a_run_has_all_of_it_and_asks_for_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef0123456789abcdef01234567")
    run = told_run(tmp_path)
    plan = json.loads(run.attempt(2).plan.read_text())
    plan["config"]["note"] = "0123456789abcdef0123456789abcdef01234567"
    run.attempt(2).plan.write_text(json.dumps(plan))
    JsonLines(run.metrics, attempt=2, attempt_facts={"step": 9}).on_guard(
        GuardReport(
            step=9,
            action="skip",
            kind="spike",
            said="gradient norm 900",
            loss=3.0,
            grad_norm=900.0,
            skipped=1,
            samples=(36, 40),
        )
    )
    assert report.main(["told", "--root", str(tmp_path)]) == Exit.DONE
    assert capsys.readouterr().out == f"{run.report}\n"
    page = run.report.read_text("utf-8")
    assert stat.S_IMODE(run.report.stat().st_mode) == 0o600
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|<script|src=|@import", page)
    assert "0123456789abcdef01234567" not in page  # no secret, wherever it came from
    for said in (
        "rank 1 was killed by signal 9",
        "&lt;twice&gt;",  # what a change means, as text
        "[&#x27;&lt;a&amp;b&gt;.txt&#x27;]",
        "optimizer.learning_rate",
        "<td>books</td><td>0.75</td><td>1,500</td><td>50</td><td>3</td>",
        "attempt 2",  # where it went on, in the curves
        "held out: perplexity",
        "<b>def </b>f(x):",
        "<td>9</td><td>skip</td><td>gradient norm 900</td>",
        "<td>torch</td><td>2.13.0</td>",
    ):
        assert said in page, said


def test_a_run_that_has_nothing_yet_has_a_page(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "new")
    run.attempt(1).root.mkdir(parents=True)
    write_run_json(run)
    run.metrics.write_text('{"kind": "step", "st')  # torn
    assert report.main([str(run.root), "--to", str(tmp_path / "page.html")]) == Exit.DONE
    assert "<h1>new</h1>" in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    told_run(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="--to FILE names another place"):
        report.main(["told", "--root", str(tmp_path), "--to", str(tmp_path / "file" / "page.html")])


def test_two_runs_differ_in_what_was_asked_and_in_nothing_that_always_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told_run(tmp_path, "one")
    told_run(tmp_path, "two", learning_rate=5e-4)
    both = ["one", "two", "--root", str(tmp_path)]
    assert compare.main([*both, "--json"]) == Exit.DONE
    said = json.loads(capsys.readouterr().out)[0]
    assert said["differs"] == [{"key": "optimizer.learning_rate", "values": ["0.001", "0.0005"]}]
    assert [row["tokens_seen"] for row in said["runs"]] == [6000, 6000]
    assert compare.main([*both, "--to", str(tmp_path / "both.html")]) == Exit.DONE
    assert "optimizer.learning_rate  0.001  0.0005" in capsys.readouterr().out
    page = (tmp_path / "both.html").read_text()
    assert "<td>optimizer.learning_rate</td><td>0.001</td><td>0.0005</td>" in page
    with pytest.raises(Refused, match="two runs or more"):
        compare.main(["one", "one", "--root", str(tmp_path)])


def test_a_number_that_one_plan_lacks_differs() -> None:
    plans = {"a": {"x": 1, "of": [{"y": 2}]}, "b": {"x": 1, "of": [{"y": 3}], "z": None}}
    assert [(one.key, one.values) for one in differing(plans)] == [
        ("of.0.y", ("2", "3")),
        ("z", ("-", "null")),
    ]


def test_a_thinned_curve_keeps_its_peaks_and_its_ends() -> None:
    points = [(float(x), 0.0) for x in range(100_000)]
    points[77_777] = (77_777.0, 9.0)
    points[12] = (12.0, -3.0)
    kept = thinned(points)
    assert len(kept) <= 600
    assert {points[0], points[12], points[77_777], points[-1]} <= set(kept)
    assert list(kept) == sorted(kept)


def test_a_curve_stays_within_its_frame_and_leaves_out_what_is_no_number() -> None:
    nan = float("nan")
    drawn = curves_figure("x", [Series("a", ((1.0, 2.0), (2.0, nan), (3.0, 4.0), (4.0, nan)))])
    (curve,) = [shape for shape in drawn.shapes if isinstance(shape, Curve)]
    assert len(curve.points) == 2
    assert all(0 < x < drawn.width and 0 < y < drawn.height for x, y in curve.points)
    assert curve.points[0][1] > curve.points[1][1]  # up is more
    empty = curves_figure("x", [Series("a", ((1.0, nan),))])
    assert [s.text for s in empty.shapes if isinstance(s, Words)] == ["nothing to show"]


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (4.62, 8.4, [5, 6, 7, 8]),
        (3, 3, [3]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low: float, high: float, found: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(found)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1.2e-4, "1.2e-04"), (0.003, "0.003"), (12, "12"), (1500, "1,500"), (2.5e6, "2.5M")],
)
def test_numbers_on_axes_are_short(value: float, text: str) -> None:
    assert number_text(value) == text
