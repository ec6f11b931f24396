"""metrics.jsonl: the truth about a run's metrics. Dashboards are views of it.

One JSON object a line, appended, never rewritten; `kind` says which:

    attempt  an attempt begins: world size, step it goes on from, FLOPs and peak behind `mfu`,
             seconds of start-up by phase
    step     a logged step: step loss learning_rate grad_norm tokens tokens_per_second mfu ...
             (reports.StepReport has the meaning and unit of each)
    eval     step, eval_seconds and eval_<name> of each value; samples if it generated text
    guard    what the numerics guard did: step, action (log, skip, rewind), anomaly, said,
             loss, grad_norm, skipped (steps so far), samples [first, one past the last], to_step
    save     step, succeeded, stall_s (training stood still), bytes, path
    upload   step, succeeded, seconds (nobody waited), bytes, url, problem, skipped (so far)

An attempt that went back to a checkpoint does some steps again: their lines carry its `attempt`
number, and of several lines with one (kind, step) the last one counts (records/metrics.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.records.json_file import append_line, end_torn_line
from trainer.records.room import place_told
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport


class JsonLines:
    """Appends to `path`. `attempt_facts` go into the line that opens the attempt."""

    def __init__(self, path: Path, *, attempt: int, attempt_facts: Mapping[str, Any]) -> None:
        self._path = path
        self._attempt = attempt
        path.parent.mkdir(parents=True, exist_ok=True)
        end_torn_line(path)
        self._write("attempt", attempt_facts)

    def on_step(self, report: StepReport) -> None:
        self._write("step", asdict(report))

    def on_eval(self, report: EvalReport) -> None:
        line: dict[str, Any] = {"step": report.step, "eval_seconds": report.seconds}
        line |= {f"eval_{name}": value for name, value in report.values.items()}
        if report.samples:
            line["samples"] = [list(sample) for sample in report.samples]
        self._write("eval", line)

    def on_save(self, report: SaveReport) -> None:
        self._write("save", asdict(report))

    def on_upload(self, report: UploadReport) -> None:
        self._write("upload", asdict(report))

    def on_guard(self, report: GuardReport) -> None:
        line = asdict(report)
        self._write("guard", {"anomaly": line.pop("kind"), **line})

    def close(self) -> None:
        """Every line was written when it was told; there is nothing to give back."""

    def _write(self, kind: str, line: Mapping[str, Any]) -> None:
        head = {"kind": kind, "attempt": self._attempt, "time": round(time.time(), 3)}
        with place_told(self._path.parent):  # without the truth a run stops
            append_line(self._path, head | {key: _plain(value) for key, value in line.items()})


def _plain(value: Any) -> Any:
    """JSON has no NaN: a skipped step's infinite norm is written as null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
