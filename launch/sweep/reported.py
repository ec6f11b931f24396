"""What trials have reported, as a sweep judges it."""

from __future__ import annotations

from dataclasses import dataclass

from launch.sweep.journal import Trial
from launch.sweep.place import Place
from launch.sweep.rungs import Points
from trainer.config.sections.sweep import SweepSection


@dataclass(frozen=True)
class Reported:
    section: SweepSection
    place: Place

    def costs(self, trial: Trial) -> Points:
        """Of the first metric, as it goes; smaller where better."""
        sign = 1 if self.section.goals[0] == "min" else -1
        points = self.place.points(trial, self.section.metrics[0])
        return [(step, sign * value) for step, value in points]

    def values(self, trial: Trial) -> list[float] | str:
        """What a finished trial came to, one a metric; or which of them it never reported."""
        found = []
        for metric, goal in zip(self.section.metrics, self.section.goals, strict=True):
            points = self.place.points(trial, metric)
            if not points:
                return self._no_metric(trial, metric)
            values = [value for _, value in points]
            best = min(values) if goal == "min" else max(values)
            found.append(values[-1] if self.section.take == "last" else best)
        return found

    def missing(self, trial: Trial) -> str:
        """Which metric it will never report, from the first line that would have it; or empty."""
        for metric in self.section.metrics:
            names = self.place.reported(trial, metric)
            if names and metric not in names:
                return self._no_metric(trial, metric)
        return ""

    def _no_metric(self, trial: Trial, metric: str) -> str:
        names = self.place.reported(trial, metric)
        there = f"; there is {', '.join(names)}" if names else ""
        return f"sweep.metrics: no trial reports {metric}{there}"
