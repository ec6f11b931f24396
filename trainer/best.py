"""Which evaluation was the best so far, and whether training has gone on without a better one.

    step        100    200    300    400    500        patience 2
    loss        2.1    1.7    1.6*   1.65   1.61   ->  over at 500, best at 300

The best step's checkpoint is kept by retention. A checkpoint may be older than the evaluation of
its own step (it is written first, or alone where a run is told to stop): whoever goes on from it
makes that evaluation again, so that a resumed run decides as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from trainer.config.sections.regularize import EarlyStoppingSection
from trainer.errors import ConfigError, Problem


@dataclass(frozen=True)
class Judged:
    """What must survive a restart. `value`: of the metric at `step`, None before there is one."""

    step: int | None = None  # of the best evaluation
    value: float | None = None
    without: int = 0  # evaluations since then
    at: int = 0  # step of the last evaluation


class Best:
    """The same on all ranks: rank 0's value is what counts."""

    def __init__(
        self, section: EarlyStoppingSection | None, saved: Mapping[str, Any] | None = None
    ) -> None:
        """None, or a patience of 0: evaluations decide nothing."""
        self._section = section if section is not None and section.patience else None
        self._judged = Judged()
        self.gone = False  # no whole checkpoint of the best step was left at the end
        self.go_back(saved)

    def go_back(self, saved: Mapping[str, Any] | None) -> None:
        """To what a checkpoint holds; nothing was judged if it holds nothing."""
        self._judged = Judged(**(saved or {}))

    def saved(self) -> dict[str, Any] | None:
        return asdict(self._judged) if self.decides else None

    @property
    def decides(self) -> bool:
        return self._section is not None

    @property
    def step(self) -> int | None:
        """Of the best evaluation so far."""
        return self._judged.step if self.decides else None

    @property
    def over(self) -> bool:
        """Whether training is to end here."""
        return self._section is not None and self._judged.without >= self._section.patience

    def has_judged(self, step: int) -> bool:
        return not self.decides or step <= self._judged.at

    def value_of(self, values: Mapping[str, float]) -> float | None:
        """What is judged of an evaluation; None if it measured nothing, a sample of text for one.

        Raises: ConfigError if evaluations do not report it.
        """
        if self._section is None or not values:
            return None
        metric = self._section.metric
        if metric not in values:
            what = f"evaluations report no {metric!r}, but {', '.join(values)}"
            fix = f"regularize.early_stopping.metric={next(iter(values))}"
            raise ConfigError([Problem("regularize.early_stopping.metric", what, fix)])
        return values[metric]

    def judge(self, step: int, value: float) -> None:
        """Take note of an evaluation; what is no number is never better."""
        before = self._judged
        if self._is_better(value):
            self._judged = Judged(step, value, without=0, at=step)
        else:
            self._judged = Judged(before.step, before.value, before.without + 1, at=step)

    @property
    def result(self) -> int | None:
        """The step that is the run's result, where training has ended; None: the last one."""
        return None if self.gone else self.step

    def said(self) -> str:
        """For people, where a run has ended; empty if nothing was judged."""
        now, section = self._judged, self._section
        if section is None or now.value is None:
            return ""
        best = f"the best is step {now.step}, {section.metric} {now.value:.4g}"
        best += ", of which no checkpoint is left" if self.gone else ""
        if not self.over:
            return best
        return f"early, after {now.without} evaluations without a better {section.metric}; {best}"

    def _is_better(self, value: float) -> bool:
        section, best = self._section, self._judged.value
        if section is None or math.isnan(value):
            return False
        if best is None:
            return True
        gain = best - value if section.better == "lower" else value - best
        return gain > section.margin
