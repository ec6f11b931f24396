"""Where a run's wall time went, from its ledger alone: seconds by category that add up to it.

    launch      the ranks are started and do not speak yet
    imports     theirs, and those of a standby that they are made from
    meet, build, load
    warm_up     an attempt's first step beyond what a step takes
    step        steps done for the first time
    redone      steps that had been done before: by an earlier attempt, or before going back
    save, eval  while training stands still for them
    detection   from the last sign of life of a hung rank to the moment it was found
    teardown    from the last phase, or a rank's death, to the end of the attempt
    idle        no attempt runs
    unknown     nobody kept it: the agent was killed, its last minute is not in the ledger

The first rank of the node speaks for all: it waits for them in its collectives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.records.ledger import SPENT_EVERY_S, Event, read_ledger
from trainer.records.pulse import LOOP
from trainer.records.run_files import RunFiles

CATEGORIES = (
    "launch", "imports", "meet", "build", "load", "warm_up", "step", "redone", "save", "eval",
    "detection", "teardown", "idle", "unknown",
)  # fmt: skip
_OF_PHASE = dict.fromkeys(LOOP, "step") | {"first": "warm_up", "end": "teardown"}


@dataclass(frozen=True)
class Account:
    """`seconds` has every category. `steps`: done in all, of them `steps_redone` again."""

    wall_s: float
    seconds: dict[str, float]
    steps: int
    steps_redone: int

    @property
    def goodput(self) -> float:
        """The part of the wall time that made steps which nobody had made before."""
        return self.seconds["step"] / self.wall_s if self.wall_s else 0.0


def account(run_folder: Path, *, node: int = 0) -> Account:
    """Of a run so far; a ledger that is not there is an account of nothing."""
    return account_of(read_ledger(RunFiles(run_folder).ledger(node)))


def account_of(events: Sequence[Event]) -> Account:
    """`events`: oldest first, of any number of attempts. Pure."""
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    steps = redone = furthest = 0
    before: Event | None = None
    for attempt in _by_attempt(events):
        if before is not None:
            gap = _between(before, attempt[0])
            unknown = 0.0 if before.event == "ended" else min(gap, SPENT_EVERY_S)
            seconds["unknown"] += unknown
            seconds["idle"] += gap - unknown
        done = _of_attempt(attempt, furthest=furthest)
        for name, spent in done.seconds.items():
            seconds[name] += spent
        steps, redone = steps + done.steps, redone + done.steps_redone
        last = _last_spent(attempt)
        furthest = max(furthest, last.facts["furthest"] if last else 0)
        before = attempt[-1]
    wall_s = sum(seconds.values())
    return Account(wall_s, seconds, steps, redone)


def _by_attempt(events: Sequence[Event]) -> list[list[Event]]:
    """An attempt's lines are together: each has one agent, and it is over before the next."""
    attempts: list[list[Event]] = []
    for event in events:
        if event.event == "attempt":
            attempts.append([])
        if attempts:
            attempts[-1].append(event)
    return attempts


def _of_attempt(events: Sequence[Event], *, furthest: int) -> Account:
    """Of one attempt; `furthest`: the last step that an earlier one has done."""
    first, last = events[0], events[-1]
    wall_s = last.clock - first.clock
    seconds = dict.fromkeys(CATEGORIES, 0.0)
    spent = _last_spent(events)
    if spent is None:
        return Account(wall_s, seconds | {"launch": wall_s}, 0, 0)
    for name, took in spent.facts["seconds"].items():
        seconds[_OF_PHASE.get(name, name)] += took
    spoke = spent.facts["since"] - sum(spent.facts["seconds"].values())
    started = next((e.clock for e in events if e.event == "rank"), first.clock)
    seconds["imports"] += started - first.clock
    seconds["launch"] += max(spoke - started, 0.0)
    _add_open_phase(seconds, events, spent)
    known = sum(seconds.values())
    if known > wall_s:  # rounding
        seconds = {name: value * wall_s / known for name, value in seconds.items()}
    over = any(event.event == "ended" for event in events)
    seconds["teardown" if over else "unknown"] += max(wall_s - known, 0.0)
    steps, redone = _steps(spent, furthest=furthest)
    _divide_steps(seconds, steps=steps, redone=redone)
    return Account(wall_s, seconds, steps, redone)


def _add_open_phase(seconds: dict[str, float], events: Sequence[Event], spent: Event) -> None:
    """The phase that the first rank was in when it was heard of last."""
    since, phase = spent.facts["since"], spent.facts["phase"]
    hang = next((event for event in events if event.event == "hang"), None)
    if hang is not None:
        seconds["detection"] += max(hang.clock - since, 0.0)
        return
    deaths = [event.clock for event in events if event.event == "rank_ended"]
    until = min([spent.clock, *deaths])
    seconds[_OF_PHASE.get(phase, phase)] += max(until - since, 0.0)


def _divide_steps(seconds: dict[str, float], *, steps: int, redone: int) -> None:
    """The first step is a step too; what it takes beyond the others' mean is warming up."""
    if not steps:
        seconds["warm_up"] += seconds["step"]
        seconds["step"] = 0.0
        return
    later = max(steps - 1, 0)
    mean = seconds["step"] / later if later else 0.0
    first = min(mean, seconds["warm_up"])
    seconds["warm_up"] -= first
    total = seconds["step"] + first
    seconds["redone"] = total * redone / steps
    seconds["step"] = total - seconds["redone"]


def _steps(spent: Event, *, furthest: int) -> tuple[int, int]:
    """Steps that this attempt has done, and how many of them were done before."""
    made: int = spent.facts["made"]
    begun_after = max(furthest, spent.facts["first_step"] - 1)
    new = min(max(spent.facts["furthest"] - begun_after, 0), made)
    return made, made - new


def _last_spent(events: Sequence[Event]) -> Event | None:
    """Before a hang if there was one: what a stopped rank did once it was continued is no work."""
    until = next((at for at, event in enumerate(events) if event.event == "hang"), len(events))
    return next((e for e in reversed(events[:until]) if e.event == "spent"), None)


def _between(one: Event, other: Event) -> float:
    """Wall clocks only where there is no common one: another boot, another machine."""
    same = one.boot == other.boot
    return max(other.clock - one.clock if same else other.time - one.time, 0.0)
