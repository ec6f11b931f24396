"""What a run had left out on its way to an incident, from the lines of its metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.observers.jsonl import JsonLines
from trainer.records.json_file import read_lines
from trainer.reports import GuardReport
from trainer.verify.history import History, WayBack, history_of


def _skip(time: float, step: int) -> dict[str, Any]:
    return {"kind": "guard", "time": time, "action": "skip", "step": step}


def _back(time: float, to: int, samples: tuple[int, int], step: int = 99) -> dict[str, Any]:
    back = {"action": "rewind", "step": step, "to_step": to, "samples": list(samples)}
    return {"kind": "guard", "time": time, **back}


def _attempt(time: float, step: int) -> dict[str, Any]:
    return {"kind": "attempt", "time": time, "step": step}


def test_a_guards_line_is_found_as_one(tmp_path: Path) -> None:
    """Also as it was written before, when the anomaly's kind stood in the line's place."""
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, attempt=1, attempt_facts={"step": 0})
    report = GuardReport(
        step=3,
        action="skip",
        kind="non_finite",
        said="not finite",
        loss=None,
        grad_norm=None,
        skipped=1,
        samples=(8, 12),
    )
    lines.on_guard(report)
    found = list(read_lines(path))
    assert (found[-1]["kind"], found[-1]["anomaly"]) == ("guard", "non_finite")
    for kind in ("guard", "non_finite", "spike"):
        again = [*found[:-1], {**found[-1], "kind": kind}]
        assert history_of(again, step=9, time=1e12).left_out == {3}


def test_what_came_after_the_incident_is_not_of_its_way() -> None:
    lines = [_attempt(0, 0), _skip(1, 4), _skip(5, 7)]
    assert history_of(lines, step=7, time=5).left_out == {4, 7}
    assert history_of(lines, step=7, time=4) == History(frozenset({4}))


def test_an_attempt_that_began_before_a_skip_made_that_step_again() -> None:
    assert history_of([_skip(1, 4), _skip(2, 6), _attempt(3, 5)], step=9, time=8).left_out == {4}


def test_rows_that_were_left_out_are_left_out_again() -> None:
    lines = [_skip(1, 4), _back(2, 3, (12, 20)), _skip(3, 5), _back(4, 3, (20, 28)), _skip(5, 2)]
    found = history_of(lines, step=9, time=8)
    assert found.left_out == {2}
    assert found.ways_back == (WayBack(3, 12, 20), WayBack(3, 20, 28))
    assert found.newest is None
    # further back than before: what was left out then is left out from there on
    found = history_of([*lines, _back(6, 1, (28, 32))], step=9, time=8)
    assert [way.to for way in found.ways_back] == [1, 1, 1]
    # a checkpoint from after a way back knows it; one from before it does not
    known = history_of([*lines, _attempt(6, 4)], step=9, time=8).ways_back
    assert known == (WayBack(3, 12, 20), WayBack(3, 20, 28))
    assert history_of([*lines, _attempt(6, 3)], step=9, time=8).ways_back == ()


def test_checkpoints_from_after_the_run_went_back_are_of_another_way() -> None:
    lines = [_skip(1, 7), _back(9, 6, (24, 28)), _back(10, 4, (24, 32))]
    assert history_of(lines, step=7, time=2).newest == 4
    assert history_of(lines, step=4, time=2).newest is None
