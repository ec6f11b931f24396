"""TensorBoard event files; the only importer of tensorboard."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport

_FLUSH_S = 10  # a viewer is this late at most


class TensorBoard:
    """Scalars train/*, eval/* and save/* by step.

    The writer of the tensorboard package, not torch's SummaryWriter: that one imports what it
    can find of TensorFlow and image libraries, for nothing a scalar needs.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=_FLUSH_S)

    def on_step(self, report: StepReport) -> None:
        values = {k: float(v) for k, v in asdict(report).items() if k != "step"}
        self._add(report.step, {f"train/{name}": value for name, value in values.items()})

    def on_eval(self, report: EvalReport) -> None:
        self._add(report.step, {f"eval/{name}": value for name, value in report.values.items()})

    def on_save(self, report: SaveReport) -> None:
        self._add(report.step, {"save/stall_s": report.stall_s, "save/bytes": float(report.bytes)})

    def on_upload(self, report: UploadReport) -> None:
        self._add(report.step, {"upload/seconds": report.seconds})

    def on_guard(self, report: GuardReport) -> None:
        self._add(report.step, {"guard/skipped": float(report.skipped)})

    def close(self) -> None:
        self._writer.close()

    def _add(self, step: int, values: dict[str, float]) -> None:
        summary = Summary(value=[Summary.Value(tag=k, simple_value=v) for k, v in values.items()])
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
