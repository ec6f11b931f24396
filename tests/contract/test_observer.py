"""What every observer keeps to, whatever it does with what it is told."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.reports import eval_report, save_report, step_report, upload_report
from trainer.observers.aside import Aside
from trainer.observers.base import Observer
from trainer.observers.console import make_console
from trainer.observers.guarded import Guarded
from trainer.observers.jsonl import JsonLines
from trainer.observers.profiler import Profiler
from trainer.observers.sampled import Sampled
from trainer.observers.tensorboard import TensorBoard
from trainer.records.redact import Redactor

MakeObserver = Callable[[Path], Observer]


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _jsonl(folder: Path) -> Observer:
    return JsonLines(folder / "metrics.jsonl", attempt=1, attempt_facts={"step": 0})


def _console(out: io.StringIO) -> Observer:
    return make_console(name="run", first_step=1, total_steps=4, headline="run: 4 steps", out=out)


def _wandb(folder: Path) -> Observer:
    from trainer.observers.wandb import Wandb

    return Wandb(
        folder / "wandb",
        mode="offline",
        run_id="run-id",
        name="run",
        project="tests",
        entity=None,
        tags=("a",),
        attempt=1,
        config={"run": {"name": "run"}},
        redactor=Redactor(),
    )


OBSERVERS: dict[str, MakeObserver] = {
    "jsonl": _jsonl,
    "console": lambda folder: _console(io.StringIO()),
    "console on a terminal": lambda folder: _console(_Terminal()),
    "tensorboard": lambda folder: TensorBoard(folder / "tensorboard"),
    "wandb": _wandb,
    "profiler": lambda folder: Profiler(folder / "profile", first_step=2, num_steps=2, next_step=1),
    "sampled": lambda folder: Sampled(_jsonl(folder), every=2),
    "guarded": lambda folder: Guarded("jsonl", lambda: _jsonl(folder)),
    "aside": lambda folder: Aside("jsonl", lambda: _jsonl(folder), close_s=5),
}
each_observer = pytest.mark.parametrize("make", OBSERVERS.values(), ids=OBSERVERS)


@each_observer
def test_it_hears_a_whole_run_without_a_process_group(make: MakeObserver, tmp_path: Path) -> None:
    observer = make(tmp_path)
    for step in range(1, 4):
        observer.on_step(step_report(step))
    observer.on_save(save_report(3))
    observer.on_save(save_report(3, succeeded=False, problem="no space left"))
    observer.on_upload(upload_report(3))
    observer.on_upload(upload_report(3, succeeded=False, problem="no such bucket"))
    observer.on_eval(eval_report(3))
    observer.close()


@each_observer
def test_a_skipped_step_without_a_finite_norm_is_no_failure(
    make: MakeObserver, tmp_path: Path
) -> None:
    observer = make(tmp_path)
    observer.on_step(step_report(1, applied=False, grad_norm=float("inf"), loss=float("nan")))
    observer.close()


def test_metrics_hold_what_people_rely_on(tmp_path: Path) -> None:
    observer = _jsonl(tmp_path)
    observer.on_step(step_report(1))
    observer.on_eval(eval_report(1))
    observer.on_save(save_report(1))
    observer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["attempt", "step", "eval", "save"]
    step = {"step", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "mfu"}
    more = {"tokens_seen", "terms", "data_s", "forward_s", "backward_s", "update_s", "memory_bytes"}
    assert step | more <= lines[1].keys()
    assert lines[2]["eval_loss"] == 3.0
    assert lines[2]["samples"] == [["def ", "f(x):"]]
    assert lines[3]["stall_s"] == 0.2


def test_tensorboard_writes_scalars_by_step(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    observer = TensorBoard(tmp_path)
    for step in (1, 2):
        observer.on_step(step_report(step))
    observer.on_eval(eval_report(2))
    observer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [(1, 5.0), (2, 2.5)]
    assert [e.step for e in events.Scalars("eval/perplexity")] == [2]


def test_the_profiler_records_the_chosen_steps(tmp_path: Path) -> None:
    observer = Profiler(tmp_path, first_step=2, num_steps=2, next_step=1)
    for step in range(1, 6):
        observer.on_step(step_report(step))
    observer.close()
    assert [p.name for p in tmp_path.iterdir()] == ["steps-00000002-00000003.json"]
    json.loads((tmp_path / "steps-00000002-00000003.json").read_text())
