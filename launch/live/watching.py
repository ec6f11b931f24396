"""Several runs, looked at again and again. Schedulers are asked seldom, files every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from launch.live.follow import Follower
from launch.live.frame import RunView
from launch.live.phases import phases_of
from launch.run.run_folder import attempts
from launch.run.standing import Standing, standings
from launch.run.status import RunStatus, status_of
from trainer.records.run_files import RunFiles

_ASKED_S = 15.0  # between two questions to a scheduler, and two readings of whole ledgers
_OVER = ("finished", "stopped", "failed", "gave up")


class Watching:
    """`look` is one frame's facts. `curves`: names of metrics."""

    def __init__(self, runs: Sequence[RunFiles], *, curves: Sequence[str]) -> None:
        self._runs = runs
        self._followers = [Follower(run.metrics, names=curves) for run in runs]
        self._standings: list[Standing] = []
        self._goodput: list[float | None] = [None] * len(runs)
        self._asked: float | None = None

    def look(self, now: float) -> list[RunView]:
        """`now`: time.monotonic()."""
        asks = self._asked is None or now - self._asked >= _ASKED_S
        if asks or not any(one.record for one in self._standings):
            self._standings = standings(self._runs)
        found = []
        for at, run in enumerate(self._runs):
            self._followers[at].read()
            status = status_of(run, self._standings[at].job, with_goodput=asks)
            if asks:
                self._asked, self._goodput[at] = now, status.goodput
            found.append(self._view(at, run, replace(status, goodput=self._goodput[at])))
        return found

    def _view(self, at: int, run: RunFiles, status: RunStatus) -> RunView:
        known = attempts(run)
        runs = known and status.state not in _OVER
        return RunView(
            status,
            {name: curve.points for name, curve in self._followers[at].curves.items()},
            phases_of(run, known[-1]) if runs else (),
            self._followers[at].evaluated,
        )
