"""One sweep from its first trial to its end. What it knows is in the journal and in run folders:
killed at any moment, the next sweeper goes on where this one was.

    look     how every active trial stands, and what it has reported
    judge    who is behind, who waits at a rung, who goes on
    fill     start what waits, and propose, as far as there is room and budget
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from launch.sweep.brackets import MEETING, Bracket, brackets_of, steps_of
from launch.sweep.budget import Budget
from launch.sweep.journal import ENDED, Journal, Trial, after
from launch.sweep.judge import meetings, next_rung, passed, same_error
from launch.sweep.meeting import Child, Meeting, ended_line, lines_of, one_line
from launch.sweep.place import Place, Seen
from launch.sweep.population import succession
from launch.sweep.proposing import Proposer
from launch.sweep.reported import Reported
from launch.sweep.rungs import at_step, is_behind
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
    _refused: int = 0  # starts in a row that the place did not take
    _held: int = 0  # looks until the next start

    def __post_init__(self) -> None:
        made = Proposer(self.section, self.space, self.sampler, self.journal, self.total)
        self._proposer = made

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
        for step in self._steps_of(trial)[trial.level :]:
            value = at_step(points, step)
            if value is not None and step not in trial.rungs:
                trial = self.journal.write("rung", trial.number, step=step, value=value)
        return trial

    def _note_pause(self, trial: Trial) -> Trial:
        """It has left at its rung. A metric that is not reported at every step has its last value
        from before."""
        rung, points = self._next_rung(trial), self._reported.costs(trial)
        if rung is None or rung in trial.rungs or not points:
            return trial
        return self.journal.write("rung", trial.number, step=rung, value=points[-1][1])

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
        cost, how = seen.rank_seconds, seen.how
        if how == "paused":
            trial = self._note_pause(trial)
        if self._meets and self._next_rung(trial) in trial.rungs and how != "diverged":
            self._wait(trial, "paused", cost)
        elif how == "finished":
            self._finish(trial, cost)
        elif how == "diverged":
            self._end(trial, "diverged", seen.why, cost)
        elif trial.told_to in ("prune", "fail"):
            self._end(trial, {"prune": "pruned", "fail": "failed"}[trial.told_to], trial.why, cost)
        elif trial.told_to in ("halt", "pause") or how == "preempted":
            self._wait(trial, "waiting", cost)
        elif how == "later":
            self._not_taken(trial, seen)
        elif how in ("stopped", "paused"):
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
        if self._meets:
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
        if self.budget.limit is None or self._meets:
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
        levels, why = passed(trial, self.journal.trials, self._steps_of(trial), factor=factor)
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
        """Trials leave at their rung by themselves; one that was killed just there goes past it."""
        for trial in self._of("active"):
            rung = self._next_rung(trial)
            if trial.told_to or rung is None or rung not in trial.rungs:
                continue
            if self._reported.costs(trial)[-1][0] > rung:
                self._tell(trial, "pause")

    def _promote(self) -> None:
        """Once a whole bracket is at its rung, or has ended: the best of it go on."""
        sign = 1 if self.section.goals[0] == "min" else -1
        for one in self._meetings():
            parts = lines_of(one, self.journal.trials, self.space, sign=sign)
            parts += [line for child in one.children if (line := self._forked(child, parts))]
            self.journal.meet(one.step, parts)
            for number in one.others:
                self._proposer.note_ended(number)

    def _forked(self, child: Child, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
        """Before anybody goes on, so that all start where they met. How it ended, if it cannot."""
        (line,) = (x for x in parts if x["event"] == "proposed" and x["trial"] == child.number)
        try:
            self.place.fork(after(None, line))
        except LonghaulError as e:
            return ended_line(child.number, "failed", why=one_line(str(e)))
        return None

    def _meetings(self) -> list[Meeting]:
        rules, trials, total = self.section.pruner, self.journal.trials, self.total
        if rules.kind != "pbt":
            return meetings(trials, self._brackets, total=total, factor=rules.factor)
        (all_of_them,) = self._brackets
        seed, steps = self.section.seed, all_of_them.steps
        found = succession(trials, self.space, steps, total=total, factor=rules.factor, seed=seed)
        return [found] if found else []

    # --- fill -------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Start what there is room for. False: the budget is what keeps the next from starting."""
        if self._held > 0:
            self._held -= 1
            return True
        while len(self._of("active")) < self.section.concurrency:
            waiting = self._of("waiting")
            if not waiting and not self._proposer.may_propose:
                return True
            before = waiting[0].rank_seconds if waiting else 0.0
            if not self.budget.allows_another(self.spent, self._active_spent(), before=before):
                return False
            trial = waiting[0] if waiting else self._proposer.propose()
            self._start(trial)
            if self._over():
                return True
        return True

    def _start(self, trial: Trial) -> None:
        trial = self.journal.write("started", trial.number)
        self._spent[trial.number] = trial.rank_seconds
        pause_at = (self._next_rung(trial) or 0) if self._meets else 0
        try:
            self.place.start(trial, pause_at=pause_at)
        except LonghaulError as e:
            self._spent.pop(trial.number, None)
            self._end(trial, "failed", one_line(str(e)), trial.rank_seconds)

    def _replay(self) -> None:
        self.journal.ask_for(self.total)
        self._proposer.replay()
        for line in self.journal.lines:
            if line["event"] == "ended" and line["state"] == "finished":
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
        return bool(open_ones) or self._proposer.proposed < self.total

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
        self._proposer.note_ended(trial.number)
        if state == "finished":
            self.budget.expect(cost)

    @property
    def _reported(self) -> Reported:
        return Reported(self.section, self.place)

    @property
    def _brackets(self) -> tuple[Bracket, ...]:
        return brackets_of(self.section.pruner, self.journal.totals, last_step=self.last_step)

    @property
    def _meets(self) -> bool:
        """Whether trials wait for each other at rungs."""
        return self.section.pruner.kind in MEETING

    def _steps_of(self, trial: Trial) -> tuple[int, ...]:
        return steps_of(trial.number, self._brackets)

    def _next_rung(self, trial: Trial) -> int | None:
        return next_rung(trial, self._steps_of(trial))

    def _of(self, state: str) -> list[Trial]:
        return [t for _, t in sorted(self.journal.trials.items()) if t.state == state]

    def _active_spent(self) -> float:
        """What the active trials may still take, as far as the others tell."""
        return sum(self.budget.left_of(self._spent.get(t.number, 0.0)) for t in self._of("active"))
