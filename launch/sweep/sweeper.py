"""One sweep from its first trial to its end. What it knows is in the journal and in run folders:
killed at any moment, the next sweeper goes on where this one was.

    look     how every active trial stands, and what it has reported
    judge    who is behind, who waits at a rung, who goes on
    fill     start what waits, and propose, as far as there is room and budget
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from launch.sweep.budget import Budget
from launch.sweep.journal import ENDED, Journal, Trial
from launch.sweep.judge import meetings, next_rung, passed, same_error
from launch.sweep.place import Place, Seen
from launch.sweep.reported import Reported
from launch.sweep.rungs import at_step, is_behind, rungs
from launch.sweep.samplers import Sampler
from launch.sweep.space import Space
from trainer.config.sections.sweep import SweepSection
from trainer.errors import LonghaulError

Ending = Literal["", "done", "stopped", "budget", "same error"]
_LONGEST_HOLD = 40  # looks; ten minutes where a scheduler is asked


@dataclass
class Sweeper:
    """`total`: trials in all. `last_step`: of a trial. `ranks`: of a trial, the most of any."""

    section: SweepSection
    space: Space
    sampler: Sampler
    journal: Journal
    place: Place
    budget: Budget
    total: int
    last_step: int
    _spent: dict[int, float] = field(default_factory=dict)  # rank-seconds of active trials
    _asked: set[int] = field(default_factory=set)  # to stop, by this process
    _untold: set[int] = field(default_factory=set)  # ended, and not known to the sampler yet
    _refused: int = 0  # starts in a row that the place did not take
    _held: int = 0  # looks until the next start

    def run(self) -> Ending:
        """Until all trials have ended, or something ends the sweep: then all have saved."""
        self._replay()
        ending: Ending = ""
        while True:
            self._look()
            if not ending:
                ending = self._over()
            if ending in ("", "done"):
                self._judge()
                ending = "" if self._fill() else self._out_of_budget()
            else:
                self._halt()
            if not self._of("active"):
                ending = ending or self._over() or self._out_of_budget()
                if ending or not self._has_more():
                    return ending or "done"
            if self.place.wait(self.section.poll_s) and ending == "":
                ending = "stopped"

    @property
    def spent(self) -> float:
        """Rank-seconds of all trials so far."""
        trials = self.journal.trials.values()
        return sum(self._spent.get(one.number, one.rank_seconds) for one in trials)

    @property
    def same_error(self) -> str:
        """What all trials have failed with; "" if they have not."""
        return same_error(self.journal.trials, total=self.total)

    # --- look -------------------------------------------------------------------------------

    def _look(self) -> None:
        active = self._of("active")
        for trial, seen in zip(active, self.place.look(active), strict=True):
            self._spent[trial.number] = seen.rank_seconds
            if trial.told_to and seen.how == "active" and self._must_hear(trial, seen):
                self._ask_to_stop(trial)
            trial = self._note_rungs(trial)
            if seen.how == "active":
                self._watch(trial, seen)
            else:
                self._conclude(trial, seen)

    def _must_hear(self, trial: Trial, seen: Seen) -> bool:
        """Once more: whoever told it may have died before it was asked; a job that was requeued
        since then has not heard, and one that waits in a queue leaves it when it is told."""
        return trial.number not in self._asked or seen.is_queued or not seen.has_heard

    def _ask_to_stop(self, trial: Trial) -> None:
        """A scheduler that does not take the word now is told at the next look."""
        with suppress(LonghaulError):
            self.place.stop(trial)
            self._asked.add(trial.number)

    def _note_rungs(self, trial: Trial) -> Trial:
        points = self._reported.costs(trial)
        for step in self._rungs():
            value = at_step(points, step)
            if value is not None and step not in trial.rungs:
                trial = self.journal.write("rung", trial.number, step=step, value=value)
        return trial

    def _watch(self, trial: Trial, seen: Seen) -> None:
        if trial.told_to:
            return
        hours = self.section.trial_hours
        if missing := self._reported.missing(trial):
            self._tell(trial, "fail", why=missing)
        elif hours is not None and seen.rank_seconds > hours * 3600 * self.budget.ranks:
            self._tell(trial, "prune", why=f"it took longer than sweep.trial_hours={hours:g}")

    def _conclude(self, trial: Trial, seen: Seen) -> None:
        self._spent.pop(trial.number, None)
        self._asked.discard(trial.number)
        self._refused = self._refused + 1 if seen.how == "later" else 0
        halving = self.section.pruner.kind == "halving"
        cost, how = seen.rank_seconds, seen.how
        if halving and next_rung(trial, self._rungs()) in trial.rungs and how != "diverged":
            self._wait(trial, "paused", cost)
        elif how == "finished":
            self._finish(trial, cost)
        elif how == "diverged":
            self._end(trial, "diverged", seen.why, cost)
        elif trial.told_to == "prune":
            self._end(trial, "pruned", trial.why, cost)
        elif trial.told_to == "fail":
            self._end(trial, "failed", trial.why, cost)
        elif trial.told_to in ("halt", "pause") or how == "preempted":
            self._wait(trial, "waiting", cost)
        elif how == "later":
            self._not_taken(trial, seen)
        elif how == "stopped":
            self._end(trial, "stopped", seen.why, cost)
        elif how == "again" and trial.failures < self.section.retries:
            self._wait(trial, "waiting", cost, why=seen.why, counts=True)
        else:
            self._end(trial, "failed", seen.why, cost)

    def _not_taken(self, trial: Trial, seen: Seen) -> None:
        """A limit on jobs, a controller that is away: nothing of its settings. It is tried again,
        later each time; where nothing else runs that would make room, only so often."""
        self._held = min(2**self._refused, _LONGEST_HOLD)
        is_alone = len(self._of("active")) == 1
        if is_alone and trial.failures >= self.section.retries:
            self._end(trial, "failed", seen.why, seen.rank_seconds)
        else:
            self._wait(trial, "waiting", seen.rank_seconds, why=seen.why, counts=is_alone)

    def _finish(self, trial: Trial, cost: float) -> None:
        values = self._reported.values(trial)
        if isinstance(values, str):
            self._end(trial, "failed", values, cost)
        else:
            self._end(trial, "finished", "", cost, values=values)

    # --- judge ------------------------------------------------------------------------------

    def _judge(self) -> None:
        kind = self.section.pruner.kind
        if kind == "halving":
            self._pause_at_rungs()
            self._promote()
        self._save_for_the_first()
        for trial in self._of("active"):
            if trial.told_to:
                continue
            why = ""
            if kind == "asha":
                why = self._lost_at_a_rung(trial)
            elif kind == "median":
                why = self._behind(trial)
            if why:
                self._tell(trial, "prune", why=why)

    def _save_for_the_first(self) -> None:
        """Where the budget will not bring all active trials to their end, the last ones wait."""
        if self.budget.limit is None or self.section.pruner.kind == "halving":
            return
        active = [one for one in self._of("active") if not one.told_to]
        ahead = {one.number: self._left_of(one) for one in active}
        whole = [self._spent[n] + left for n, left in ahead.items() if left is not None]
        self.budget.projected = max(whole, default=self.budget.projected)
        needed = self.spent
        for at, trial in enumerate(active):
            needed += ahead[trial.number] or 0.0
            if at and needed > self.budget.limit:
                self._tell(trial, "halt")

    def _left_of(self, trial: Trial) -> float | None:
        """Rank-seconds until its last step at its pace so far; None before it has one."""
        points = self.place.points(trial, self.section.metrics[0])
        if not points:
            return None
        step = points[-1][0]
        return self._spent[trial.number] * max(self.last_step - step, 0) / step

    def _lost_at_a_rung(self, trial: Trial) -> str:
        factor = self.section.pruner.factor
        levels, why = passed(trial, self.journal.trials, self._rungs(), factor=factor)
        for _ in range(levels):
            self.journal.write("promoted", trial.number)
        return why

    def _behind(self, trial: Trial) -> str:
        rules = self.section.pruner
        others = [
            self._reported.costs(one)
            for one in self.journal.trials.values()
            if one.number != trial.number and one.state not in ("failed", "waiting")
        ]
        step = is_behind(
            self._reported.costs(trial),
            others,
            first_step=rules.first_step,
            min_trials=rules.min_trials,
        )
        return "" if step is None else f"worse than the median of the others at step {step}"

    def _pause_at_rungs(self) -> None:
        for trial in self._of("active"):
            if not trial.told_to and next_rung(trial, self._rungs()) in trial.rungs:
                self._tell(trial, "pause")

    def _promote(self) -> None:
        """Once a whole bracket is at its rung, or has ended: the best of it go on."""
        trials = self.journal.trials
        factor, steps = self.section.pruner.factor, self._rungs()
        totals = self.journal.totals
        for one in meetings(trials, totals, steps, total=self.total, factor=factor):
            for number in one.best:
                self.journal.write("promoted", number)
                self._wait(trials[number], "waiting", trials[number].rank_seconds)
            for number in one.others:
                self._end(trials[number], "pruned", one.why, trials[number].rank_seconds)

    # --- fill -------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Start what there is room for. False: the budget is what keeps the next from starting."""
        if self._held > 0:
            self._held -= 1
            return True
        while len(self._of("active")) < self.section.concurrency:
            waiting = self._of("waiting")
            if not waiting and not self._may_propose():
                return True
            before = waiting[0].rank_seconds if waiting else 0.0
            if not self.budget.allows_another(self.spent, self._active_spent(), before=before):
                return False
            trial = waiting[0] if waiting else self._propose()
            self._start(trial)
            if self._over():
                return True
        return True

    def _start(self, trial: Trial) -> None:
        trial = self.journal.write("started", trial.number)
        self._spent[trial.number] = trial.rank_seconds
        try:
            self.place.start(trial)
        except LonghaulError as e:
            self._spent.pop(trial.number, None)
            self._end(trial, "failed", _one_line(str(e)), trial.rank_seconds)

    def _propose(self) -> Trial:
        number = self._proposed + 1
        self._tell_sampler(number)
        point = self.sampler.ask(number)
        return self.journal.write(
            "proposed",
            number,
            point=dict(point),
            overrides=list(self.space.overrides(point)),
            bracket=self.journal.bracket_of(number),
        )

    def _may_propose(self) -> bool:
        if self._proposed >= self.total:
            return False
        if not self.section.generation:
            return True
        first = self._first_of_generation(self._proposed + 1)
        return all(t.has_ended for t in self.journal.trials.values() if t.number < first)

    def _tell_sampler(self, number: int) -> None:
        """All that ended before trial `number` is proposed, by number: which came first is chance.
        Those of its own generation are for the next.
        """
        known = {n for n in self._untold if n < self._first_of_generation(number)}
        for one in sorted(known):
            self.sampler.tell(self.journal.trials[one].told)
        self._untold -= known

    def _first_of_generation(self, number: int) -> int:
        size = self.section.generation or 1
        return (number - 1) // size * size + 1

    def _replay(self) -> None:
        """Bring the sampler to where it was: the same asked and told in the same order."""
        self.journal.ask_for(self.total)
        for line in self.journal.lines:
            if line["event"] == "proposed":
                self._tell_sampler(int(line["trial"]))
                self.sampler.ask(int(line["trial"]))
            elif line["event"] == "ended":
                self._untold.add(int(line["trial"]))
                if line["state"] == "finished":
                    self.budget.expect(float(line["rank_seconds"]))

    # --- over -------------------------------------------------------------------------------

    def _over(self) -> Ending:
        if self.same_error:
            return "same error"
        active = len(self._of("active"))
        if active and self.budget.is_spent(self.spent, active=active):
            return "budget"
        return ""

    def _out_of_budget(self) -> Ending:
        """Nothing runs, and what waits cannot be paid."""
        if self._of("active") or not self._has_more():
            return ""
        waiting = self._of("waiting")
        before = waiting[0].rank_seconds if waiting else 0.0
        allowed = self.budget.allows_another(self.spent, 0.0, before=before)
        return "" if allowed else "budget"

    def _has_more(self) -> bool:
        open_ones = [t for t in self.journal.trials.values() if t.state in ("waiting", "paused")]
        return bool(open_ones) or self._proposed < self.total

    def _halt(self) -> None:
        for trial in self._of("active"):
            if not trial.told_to:
                self._tell(trial, "halt")

    # --- small ------------------------------------------------------------------------------

    def _tell(self, trial: Trial, to: str, *, why: str = "") -> None:
        self._ask_to_stop(self.journal.write("told", trial.number, to=to, why=why))

    def _wait(
        self, trial: Trial, state: str, cost: float, *, why: str = "", counts: bool = False
    ) -> None:
        """`counts`: that start was one of those that may fail."""
        facts = {"state": state, "rank_seconds": round(cost, 3), "why": why}
        self.journal.write("waits", trial.number, **facts, counts=counts)

    def _end(
        self,
        trial: Trial,
        state: str,
        why: str,
        cost: float,
        *,
        values: list[float] | None = None,
    ) -> None:
        assert state in ENDED
        points = self.place.points(trial, self.section.metrics[0]) if state == "pruned" else []
        facts = {"state": state, "why": why, "rank_seconds": round(cost, 3)}
        at = list(points[-1]) if points else None
        self.journal.write("ended", trial.number, values=values or [], at=at, **facts)
        self._untold.add(trial.number)
        if state == "finished":
            self.budget.expect(cost)

    @property
    def _reported(self) -> Reported:
        return Reported(self.section, self.place)

    def _rungs(self) -> tuple[int, ...]:
        rules = self.section.pruner
        if rules.kind not in ("asha", "halving"):
            return ()
        return rungs(first_step=rules.first_step, factor=rules.factor, total=self.last_step)

    def _of(self, state: str) -> list[Trial]:
        return [t for _, t in sorted(self.journal.trials.items()) if t.state == state]

    def _active_spent(self) -> float:
        """What the active trials may still take, as far as the others tell."""
        return sum(self.budget.left_of(self._spent.get(t.number, 0.0)) for t in self._of("active"))

    @property
    def _proposed(self) -> int:
        return max(self.journal.trials, default=0)


def _one_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[1].startswith("1. ") else lines[0]).removeprefix(
        "1. "
    )
