"""Where trials run: each is an ordinary run, started by a process of its own and looked at from its
folder. A sweeper that is killed leaves them running, and the next one finds them so.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from launch.node.inbox import SignalInbox
from launch.outcome import decide, observe
from launch.run.attempts import concluded
from launch.run.forking import fork
from launch.run.liveness import is_alive, read_mark
from launch.run.run_folder import attempts
from launch.run.standing import Standing, standings
from launch.run.status import status_of
from launch.run.stopping import ask_to_stop
from launch.stand import frozen_hash
from launch.sweep.cost import cost_so_far, rank_seconds, waits_in_a_queue
from launch.sweep.folder import SweepFiles
from launch.sweep.journal import Trial
from launch.sweep.metrics import lines_of, names_in, points_of
from launch.sweep.one import NOT_TAKEN, STARTER
from launch.sweep.rungs import Points
from trainer.config.schema import Config
from trainer.errors import Exit
from trainer.records.attempt import PAUSE, read_stop
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles

# paused: it left where it was to; again: something outside of it ended it; preempted: the same, and
# nobody's fault; later: the place did not take it; refused: only other settings help; failed: it
# was started again often enough.
How = Literal[
    "active",
    "finished",
    "paused",
    "stopped",
    "preempted",
    "again",
    "later",
    "diverged",
    "refused",
    "failed",
]
_LOOK_S = 1.0  # between two looks for the file that stops a sweep


@dataclass(frozen=True)
class Seen:
    """`is_queued`: it waits for a scheduler. `has_heard`: its newest attempt was told to stop."""

    how: How
    why: str = ""
    rank_seconds: float = 0.0
    is_queued: bool = False
    has_heard: bool = True


class Place(Protocol):
    def start(self, trial: Trial, *, pause_at: int = 0) -> None:
        """`pause_at`: the step at which it is to save and leave by itself; 0: at its end.

        Raises: LonghaulError if its settings cannot be.
        """

    def fork(self, trial: Trial) -> None:
        """Its run, with what its parent has saved last; again: nothing. Raises: LonghaulError."""

    def stop(self, trial: Trial) -> None:
        """Ask it to save and stop; it does so in its own time. What waits in a queue leaves it.

        Raises: LonghaulError if nobody takes the word now.
        """

    def look(self, trials: Sequence[Trial]) -> list[Seen]:
        """In their order."""

    def points(self, trial: Trial, metric: str) -> Points:
        """(step, value) by step, as far as it has come."""

    def reported(self, trial: Trial, metric: str) -> list[str]:
        """The names beside which `metric` would stand; empty before the first such line."""

    def wait(self, seconds: float) -> bool:
        """True if somebody wants the sweep to end."""


@dataclass
class Runs:
    """The real one. `settings_of`: the checked settings of a trial. `starter`: the module that
    starts one."""

    files: SweepFiles
    settings_of: Callable[[Trial], Config]
    inbox: SignalInbox
    starter: str = STARTER
    _children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    _read: dict[tuple[Path, bool], tuple[int, list[dict[str, Any]]]] = field(default_factory=dict)
    _is_told: bool = False  # that somebody wants the sweep to end

    def start(self, trial: Trial, *, pause_at: int = 0) -> None:
        settings = self.files.settings(trial.number)
        settings.parent.mkdir(mode=0o700, exist_ok=True)
        values = self.settings_of(trial).model_dump(mode="json")
        if pause_at:
            values["steps"]["pause_at"] = pause_at
        write_json(settings, values)
        with self.files.log(trial.number).open("ab") as log:
            self._children[trial.number] = subprocess.Popen(
                [sys.executable, "-m", self.starter, str(settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the sweep, which tells them
            )

    def fork(self, trial: Trial) -> None:
        if self.files.run(trial.number).run_json.exists():
            return  # by a sweeper that was killed before it said so
        config = self.settings_of(trial)
        values, parent = config.model_dump(mode="json"), self.files.run(trial.parent)
        fork(parent, config=values, frozen_hash=frozen_hash(config))

    def stop(self, trial: Trial) -> None:
        stop_trial(self.files, trial.number, standings([self.files.run(trial.number)])[0])

    def look(self, trials: Sequence[Trial]) -> list[Seen]:
        runs = [self.files.run(trial.number) for trial in trials]
        there = standings(runs)
        return [self._seen(*one) for one in zip(trials, runs, there, strict=True)]

    def points(self, trial: Trial, metric: str) -> Points:
        return points_of(self._lines(trial, metric), metric)

    def reported(self, trial: Trial, metric: str) -> list[str]:
        return names_in(self._lines(trial, metric))

    def wait(self, seconds: float) -> bool:
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            select.select([self.inbox.reader], [], [], min(max(left, 0.0), _LOOK_S))
            told = bool(self.inbox.read()) or self.files.stop.exists()
            if told and not self._is_told:
                self._is_told = True
                return True
            if left <= _LOOK_S:
                return self._is_told

    def _lines(self, trial: Trial, metric: str) -> list[dict[str, Any]]:
        """Read again only once there is more."""
        path = self.files.run(trial.number).metrics
        key = (path, metric.startswith("eval_"))
        size = path.stat().st_size if path.exists() else 0
        if self._read.get(key, (-1, []))[0] != size:
            self._read[key] = (size, lines_of(path, metric))
        return self._read[key][1]

    def _seen(self, trial: Trial, run: RunFiles, now: Standing) -> Seen:
        child = self._children.get(trial.number)
        starter = read_mark(self.files.starter(trial.number))
        starts = child.poll() is None if child else starter is not None and is_alive(starter)
        known = attempts(run)
        if starts or now.may_be_active:
            has_heard = now.files is not None and now.files.stop.exists()
            cost = cost_so_far(run, now, now=time.time())
            return Seen("active", "", cost, is_queued=waits_in_a_queue(now), has_heard=has_heard)
        if not known:
            return Seen(*self._never_began(trial, child))
        status = status_of(run, now.job)
        how = _how(run, known[-1].number, status.state)
        if child and child.returncode in (Exit.REFUSED, NOT_TAKEN) and how != "finished":
            how, status_why = self._never_began(trial, child)  # of this start; the run is older
            return Seen(how, status_why, rank_seconds(run, now=None))
        return Seen(how, status.why, rank_seconds(run, now=None))

    def _never_began(self, trial: Trial, child: subprocess.Popen[bytes] | None) -> tuple[How, str]:
        said = _last_words(self.files.log(trial.number))
        if child is not None and child.returncode in (Exit.REFUSED, Exit.STOP):
            return "refused", said
        if child is not None and child.returncode == NOT_TAKEN:
            return "later", said
        return "again", said or "nothing was started"


def stop_trial(files: SweepFiles, number: int, now: Standing) -> bool:
    """False if nothing of it is there to be told. Raises: LonghaulError if it is not taken now."""
    if now.files is not None and now.may_be_active:
        ask_to_stop(files.run(number), now, detail="its sweep")
        return True
    mark = read_mark(files.starter(number))
    if mark is None or not is_alive(mark):
        return False
    with suppress(ProcessLookupError):  # it prepares data, or is about to begin
        os.killpg(mark.pid, signal.SIGTERM)
    return True


def _how(run: RunFiles, attempt: int, state: str) -> How:
    if state == "finished":
        return "finished"
    outcome = concluded(run, attempt) or decide(observe(run, attempt))
    if outcome.cause == "user":
        return "paused" if _was_to_pause(run, attempt) else "stopped"
    if outcome.cause in ("preempt", "time_limit"):
        return "preempted"
    if outcome.cause == "numerics":
        return "diverged"
    if outcome.cause in ("config", "data", "oom") and state == "gave up":
        return "refused"
    return "failed" if state == "gave up" else "again"


def _was_to_pause(run: RunFiles, attempt: int) -> bool:
    with suppress(OSError, ValueError, TypeError):
        stop = read_stop(run.attempt(attempt).stop)
        return stop is not None and stop.detail == PAUSE
    return False


def _last_words(log: Path) -> str:
    """What a person reads first: the problem, where there is a list of them."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    said = [line.strip() for line in lines if line.strip()]
    numbered = [line for line in said if line.startswith("1. ")]
    return (numbered or said or [""])[-1].removeprefix("1. ")
