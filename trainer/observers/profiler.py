"""PyTorch's profiler over chosen steps of rank 0; one trace file for Perfetto or chrome://tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport


class Profiler:
    """Records steps `first_step` ... `first_step + num_steps - 1`; needs to hear every step.

    `next_step` is the first step that this attempt will do. Evaluations and saves between the
    recorded steps are in the trace as well.
    """

    def __init__(self, folder: Path, *, first_step: int, num_steps: int, next_step: int) -> None:
        self._folder = folder
        self._first = first_step
        self._last = first_step + num_steps - 1
        self._profile: Any = None
        self._begin_if_due(next_step)

    def on_step(self, report: StepReport) -> None:
        if self._profile is not None and report.step >= self._last:
            self._finish(report.step)
        self._begin_if_due(report.step + 1)

    def on_eval(self, report: EvalReport) -> None:
        """Not of interest."""

    def on_save(self, report: SaveReport) -> None:
        """Not of interest."""

    def on_upload(self, report: UploadReport) -> None:
        """Not of interest."""

    def on_guard(self, report: GuardReport) -> None:
        """Not of interest."""

    def close(self) -> None:
        if self._profile is not None:
            self._finish(self._last)

    def _begin_if_due(self, step: int) -> None:
        if self._profile is None and self._first <= step <= self._last:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            self._first = step
            self._profile = profile(activities=activities, record_shapes=True)
            self._profile.start()

    def _finish(self, step: int) -> None:
        self._profile.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"steps-{self._first:08d}-{step:08d}.json"
        self._profile.export_chrome_trace(str(path))
        self._profile = None
        self._last = 0  # once an attempt
