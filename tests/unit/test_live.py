"""longhaul watch: what is read, what is drawn of it, and what is sent to the terminal."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from launch.commands import watch
from launch.live.curve import drawn
from launch.live.follow import Curve, Follower
from launch.live.frame import RunView, frame
from launch.live.phases import RankPhase, phases_of, spans, text_of
from launch.live.screen import Screen
from launch.run.liveness import own_mark, write_mark
from launch.run.status import RunStatus
from launch.watch.watched import Watched
from tests.helpers.told_run import told_run
from trainer.errors import Exit, Refused
from trainer.records.ledger import Ledger
from trainer.records.pulse import HEAD, PHASES
from trainer.records.run_files import RunFiles

STATUS = RunStatus("a", "running", 30, 120, 2.5, 1500.0, 20, 2, "process 7", "runs/a", left_s=90)


def test_a_growing_file_is_read_on_from_where_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path, names=["loss"])
    follower.read()  # not there yet
    assert follower.curves["loss"].points == []
    path.write_text('{"kind": "step", "step": 1, "loss": 3.0}\n{"kind": "step", "step": 2, "lo')
    follower.read()
    assert follower.curves["loss"].points == [(1, 3.0)]
    with path.open("a") as file:
        file.write('ss": 2.0}\nnot json\n{"kind": "eval", "step": 2, "eval_loss": 2.5}\n')
    follower.read()
    assert follower.curves["loss"].points == [(1, 3.0), (2, 2.0)]
    assert follower.evaluated["eval_loss"] == 2.5
    path.write_text("")  # another file under its name
    follower.read()
    assert follower.curves["loss"].points == [(1, 3.0), (2, 2.0)]


def test_of_a_long_file_the_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    filler = "x" * 1000
    with path.open("w") as file:
        for step in range(1, 10_001):
            file.write(json.dumps({"step": step, "loss": 1.0, "filler": filler}) + "\n")
    follower = Follower(path, names=["loss"])
    follower.read()
    assert 1 < follower.curves["loss"].points[0][0] < 3_000
    assert follower.curves["loss"].points[-1] == (10_000, 1.0)


def test_a_curve_forgets_what_is_redone_and_stays_small() -> None:
    curve = Curve()
    for step in range(1, 50_001):
        curve.add(step, float(step))
    assert len(curve.points) <= 4096
    assert curve.points[0] == (1, 1.0)
    assert curve.points[-1] == (50_000, 50_000.0)
    assert [step for step, _ in curve.points] == sorted({step for step, _ in curve.points})
    curve.add(40_000, 0.0)
    assert curve.points[-1] == (40_000, 0.0)
    assert curve.points[-2][0] < 40_000


def test_a_falling_line_falls_and_touches_itself() -> None:
    lines = drawn([(n, 10.0 - n) for n in range(10)], width=14, height=10, ascii_only=True)
    assert lines[0].startswith("10 |*")
    assert lines[-1].startswith(" 1 |")
    columns = [line.split("|")[1] for line in lines]
    tops = [min(r for r in range(10) if columns[r][c] == "*") for c in range(10)]
    assert tops == sorted(tops)
    assert lines[-1].endswith("*")
    for c in range(9):  # neighbours touch
        left, right = ({r for r in range(10) if columns[r][x] == "*"} for x in (c, c + 1))
        assert min(abs(a - b) for a in left for b in right) <= 1


def test_braille_has_eight_dots_a_character_and_no_line_is_too_wide() -> None:
    points = [(n, float(n % 7)) for n in range(400)] + [(400, float("nan"))]
    lines = drawn(points, width=40, height=5, ascii_only=False)
    assert len(lines) == 5
    assert {len(line) for line in lines} == {40}
    assert all(0x2800 <= ord(c) < 0x2900 or c == " " for x in lines for c in x.split("|")[1])
    assert drawn([(1, float("inf"))], width=40, height=5, ascii_only=False) == []
    assert len(drawn([(1, 2.0)], width=40, height=1, ascii_only=True)) == 1


def test_a_frame_fits_its_terminal() -> None:
    curve = {"loss": [(n, 1.0 / n) for n in range(1, 31)]}
    views = [RunView(STATUS, curve, [RankPhase(0, "forward", 31, 0.25, 9)]) for _ in range(3)]
    lines = frame(views, size=(80, 24), ascii_only=True)
    assert len(lines) <= 24
    assert lines[0] == (
        "a: running, step 30 of 120 (25%), loss 2.5, 1,500 tokens/s, attempt 2, saved at 20, 2 min"
        " left"
    )
    assert lines[1] == "  ranks: forward of 31: 0 (0.2 s)"
    assert lines[3] == "  loss, steps 1 to 30"
    low = frame(views, size=(80, 9), ascii_only=True)  # no room for curves
    assert len(low) == 3 * 3 + 2
    hostile = RunView(
        RunStatus("a", "gave up", 0, None, None, None, 0, 1, "said \x1b[2J\nand\r", "x")
    )
    assert frame([hostile], size=(80, 24), ascii_only=True)[1] == "  said  [2J and "


def test_ranks_are_told_in_groups_those_behind_last() -> None:
    phases = [RankPhase(rank, "agree", 8, 2.0, 50) for rank in (0, 1, 2, 5)]
    phases += [RankPhase(3, "data", 8, 7.5, 46), RankPhase(4, "agree", 8, 3.0, 50)]
    assert text_of(phases) == "agree of 8: 0-2,4-5 (3.0 s); data of 8: 3 (7.5 s)"
    assert spans([]) == ""
    assert spans([7]) == "7"


def test_ranks_of_this_machine_are_read_from_their_pages(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    attempt = run.attempt(1)
    attempt.root.mkdir(parents=True)
    write_mark(attempt.agent, own_mark())  # this process is the agent
    watched = [Watched.make(rank) for rank in (0, 1)]
    try:
        for each, phase in zip(watched, ("forward", "data"), strict=True):
            head = HEAD.pack(5, os.getpid(), PHASES.index(phase), 12, 0, 1, 0, 5)
            each.memory[: HEAD.size] = head
        found = phases_of(run, attempt)
    finally:
        for each in watched:
            each.close()
    assert [(one.rank, one.phase, one.step) for one in found] == [
        (0, "forward", 12),
        (1, "data", 12),
    ]


def test_ranks_elsewhere_are_told_by_their_nodes(tmp_path: Path) -> None:
    run = RunFiles(tmp_path / "run")
    for node in (0, 1):
        old = Ledger(run.ledger(node), attempt=1)
        old.write("spent", rank=node * 8, phase="save", step=3)
        new = Ledger(run.ledger(node), attempt=2)
        new.write("spent", rank=node * 8, phase="eval", step=9)
        new.write("stacks", ranks=[])
    found = phases_of(run, run.attempt(2))
    assert [(one.rank, one.phase, one.step) for one in found] == [(0, "eval", 9), (8, "eval", 9)]
    assert phases_of(run, run.attempt(3)) == []


def test_only_lines_that_changed_are_sent() -> None:
    out = io.StringIO()
    with Screen(out) as screen:
        screen.show(["one", "two", "three"], (80, 24))
        out.truncate(0)
        screen.show(["one", "TWO", "three"], (80, 24))
        assert out.getvalue().strip("\0") == "\x1b[2;1HTWO\x1b[K"
        out.truncate(0)
        screen.show(["one", "TWO", "three"], (80, 24))
        assert out.getvalue().strip("\0") == ""
        screen.show(["one"], (80, 24))  # fewer lines: what was there goes
        assert out.getvalue().strip("\0") == "\x1b[2;1H\x1b[K\x1b[3;1H\x1b[K"
        out.truncate(0)
        screen.show(["one and more"], (7, 24))  # resized: all of it, cut
        assert out.getvalue().strip("\0") == "\x1b[2J\x1b[1;1Hone and\x1b[K"
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")


def test_without_a_terminal_it_is_one_frame(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told_run(tmp_path)
    assert watch.main(["told", "--root", str(tmp_path), "--curve", "loss", "nothing"]) == Exit.DONE
    said = capsys.readouterr().out
    assert said.startswith("told: ")
    assert "loss, steps 1 to 60" in said
    assert "nothing, steps" not in said


def test_nothing_to_watch_is_said(tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"nothing runs under .*; name a run"):
        watch.main(["--root", str(tmp_path)])
    with pytest.raises(Refused, match=r"--every 0: seconds between two frames"):
        watch.main(["x", "--every", "0"])
