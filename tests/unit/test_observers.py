"""Observers cannot end a run or slow it, and metrics.jsonl survives kills and repeated steps."""

from __future__ import annotations

import io
import logging
import os
import threading
import time
from pathlib import Path

import pytest

from tests.helpers.reports import eval_report, save_report, step_report
from trainer.observers.aside import Aside
from trainer.observers.console import make_console
from trainer.observers.guarded import Guarded
from trainer.observers.jsonl import JsonLines
from trainer.observers.sampled import Sampled
from trainer.records.metrics import read_metrics
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport


class Heard:
    """Remembers steps; raises at `fail_at`."""

    def __init__(self, fail_at: int = 0) -> None:
        self.steps: list[int] = []
        self.closed = False
        self._fail_at = fail_at

    def on_step(self, report: StepReport) -> None:
        if report.step == self._fail_at:
            raise OSError(28, "No space left on device")
        self.steps.append(report.step)

    def on_eval(self, report: EvalReport) -> None: ...
    def on_upload(self, report: UploadReport) -> None: ...
    def on_save(self, report: SaveReport) -> None: ...
    def on_guard(self, report: GuardReport) -> None: ...

    def close(self) -> None:
        self.closed = True


def test_an_observer_that_fails_is_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    inner = Heard(fail_at=2)
    observer = Guarded("mine", lambda: inner)
    with caplog.at_level(logging.ERROR):
        for step in (1, 2, 3, 4):
            observer.on_step(step_report(step))
        observer.close()
    assert inner.steps == [1]
    assert not inner.closed
    (record,) = caplog.records
    assert "observer mine failed and is left out" in record.getMessage()
    assert record.exc_info is not None


def test_an_observer_that_cannot_be_made_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    def make() -> Heard:
        raise ImportError("no such package")

    observer = Guarded("mine", make)
    observer.on_step(step_report(1))
    observer.on_eval(eval_report(1))
    observer.on_save(save_report(1))
    observer.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("total", "heard"), [(10, [1, 4, 8, 10]), (8, [1, 4, 8]), (1, [1]), (3, [1, 3])]
)
def test_the_first_and_the_last_step_are_always_heard(total: int, heard: list[int]) -> None:
    inner = Heard()
    observer = Sampled(inner, every=4)
    for step in range(1, total + 1):
        observer.on_step(step_report(step))
    observer.close()
    assert inner.steps == heard
    assert inner.closed


def test_a_resumed_attempt_hears_its_first_step(tmp_path: Path) -> None:
    inner = Heard()
    observer = Sampled(inner, every=10)
    for step in range(7, 13):
        observer.on_step(step_report(step))
    observer.close()
    assert inner.steps == [7, 10, 12]


def test_an_observer_that_hangs_neither_slows_steps_nor_the_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    forever = threading.Event()

    def make() -> Heard:
        forever.wait(300)
        return Heard()

    observer = Aside("slow", make, close_s=0.3)
    started = time.monotonic()
    for step in range(1, 12_000):
        observer.on_step(step_report(step))
    observer.close()
    assert time.monotonic() - started < 100  # of the 300 for which it hangs
    forever.set()
    assert "is not done after" in caplog.text
    assert "reports dropped" in caplog.text


def test_an_observer_aside_hears_everything_in_order() -> None:
    inner = Heard()
    observer = Aside("mine", lambda: inner, close_s=10)
    for step in range(1, 200):
        observer.on_step(step_report(step))
    observer.close()
    assert inner.steps == list(range(1, 200))
    assert inner.closed


def test_steps_done_again_count_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for attempt, steps in ((1, range(1, 6)), (2, range(4, 8))):
        lines = JsonLines(path, attempt=attempt, attempt_facts={"step": steps[0] - 1})
        for step in steps:
            lines.on_step(step_report(step, loss=attempt))
        lines.close()
    found = [(line["step"], line["attempt"]) for line in read_metrics(path)]
    assert found == [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (7, 2)]


def test_a_line_torn_by_a_kill_spoils_nothing(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, attempt=1, attempt_facts={"step": 0})
    lines.on_step(step_report(1))
    with path.open("a") as file:
        file.write('{"kind": "step", "step": 2, "lo')
    again = JsonLines(path, attempt=2, attempt_facts={"step": 1})
    again.on_step(step_report(2))
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert len(read_metrics(path, "attempt")) == 2


def test_plain_lines_are_flushed_one_by_one() -> None:
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as out, os.fdopen(reader) as back:
        console = make_console(name="r", first_step=1, total_steps=20, headline="r: 20", out=out)
        assert back.readline() == "r: 20\n"
        console.on_step(step_report(10))
        line = back.readline()
        # Not this one: the store has printed a warning, and once is enough.
        console.on_save(save_report(10, succeeded=False, problem="no space left"))
        console.on_save(save_report(11))
        assert back.readline().startswith("saved step 11: ")
        console.close()
    for part in ("step 10/20", "loss 0.5000", "lr 1.00e-03", "200 tokens/s", "MFU 40.0 %", "left "):
        assert part in line


def test_a_terminal_shows_numbers_evaluations_and_samples() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    console = make_console(name="r", first_step=1, total_steps=20, headline="r: 20 steps", out=out)
    console.on_step(step_report(10))
    console.on_save(save_report(10))
    console.on_eval(eval_report(10))
    console.close()
    shown = out.getvalue()
    for part in ("10/20", "loss 0.5000", "perplexity 20.1", "saved step 10", "f(x):"):
        assert part in shown
