"""The interval between saves, chosen while a run goes on: near the optimum, within its limits."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.thread_world import run_threads
from trainer.cadence import SaveWhenBest, spans_of, went_on_from_memory
from trainer.capacity.goodput import Parts, best_interval, goodput
from trainer.capacity.interval import (
    Costs,
    Failures,
    Limits,
    Outlived,
    assumed,
    choose,
    faded,
    mean_between_s,
    outlived,
    wanted_s,
)
from trainer.dist.world import Alone
from trainer.reports import SaveReport

_FREE = Limits(lost_s=math.inf, stall_share=1.0)
_HOUR = 3600.0


@dataclass
class Clock:
    """Time goes on when the simulation says so."""

    now: float = 0.0
    tick: float = 0.0  # goes by whenever somebody looks

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


@dataclass(frozen=True)
class Case:
    """Something that could be anywhere: what saves cost, how often failures come."""

    stall_s: float
    between_s: float
    ranks: int
    step_s: float
    seed: int

    @property
    def best_s(self) -> float:
        return best_interval(self.stall_s, self.between_s)

    def goodput_lost(self, interval_s: float) -> float:
        parts = Parts(stall_s=self.stall_s, detect_s=0.0, restart_s=0.0)
        best, here = (goodput(parts, tau, self.between_s) for tau in (self.best_s, interval_s))
        return best - here


def cases(count: int) -> list[Case]:
    draw = random.Random(8)
    found = []
    for seed in range(count):
        stall_s = 10 ** draw.uniform(-1.3, 1.8)  # 0.05 to 60 s
        between_s = _HOUR * 10 ** draw.uniform(-0.5, 2.3)  # 20 minutes to 200 hours
        size = 50_000 * _HOUR / between_s * 10 ** draw.uniform(-1.0, 0.7)  # worse or better than
        step_s = best_interval(stall_s, between_s) / draw.uniform(8, 20)
        found.append(Case(stall_s, between_s, max(1, round(size)), step_s, seed))
    return found


def live(case: Case, log: Path, *, limits: Limits, saves: int = 14) -> float:
    """The interval in seconds after so many saves of a run that has failed some times before."""
    draw = random.Random(case.seed)
    clock = Clock()
    log.unlink(missing_ok=True)
    with log.open("w") as file:
        for _ in range(12):
            began = clock.now
            clock.now += draw.expovariate(1 / case.between_s)
            line = {"started": began, "ended": clock.now, "cause": "node", "why": ""}
            file.write(json.dumps(line) + "\n")
    world = Alone()
    world.place = type(world.place)(0, case.ranks, 0)
    planner = SaveWhenBest(
        world, checkpoint_bytes=10**9, asynchronous=True, attempts_log=log, step=0,
        limits=limits, clock=clock,
    )  # fmt: skip
    step = done = last = every = 0
    while done < saves:
        step += 1
        clock.now += case.step_s * draw.uniform(0.9, 1.1)
        if planner.due(step):
            stall_s = case.stall_s * draw.lognormvariate(0, 0.2)
            clock.now += stall_s
            planner.observe(report(step, stall_s=stall_s, write_s=stall_s / 2))
            every, last, done = step - last, step, done + 1
    return every * case.step_s


def report(step: int, *, stall_s: float, write_s: float = 1.0, fine: bool = True) -> SaveReport:
    return SaveReport(
        step=step, succeeded=fine, stall_s=stall_s, bytes=1, path="p", write_s=write_s
    )


def test_it_lands_near_the_optimum(tmp_path: Path) -> None:
    """400 runs on a simulated clock: within 1.5x in 95 %, within a point of the best goodput."""
    made = cases(400)
    found = [live(case, tmp_path / "log", limits=_FREE) for case in made]
    near = [1 / 1.5 <= f / c.best_s <= 1.5 for f, c in zip(found, made, strict=True)]
    assert sum(near) >= 380
    lost = [c.goodput_lost(f) for f, c in zip(found, made, strict=True)]
    assert sum(points <= 0.01 for points in lost) >= 396
    assert sorted(lost)[len(lost) // 2] < 0.0005


def test_the_stall_budget_costs_less_than_half_a_point(tmp_path: Path) -> None:
    limits = Limits(lost_s=math.inf)
    lost = [c.goodput_lost(live(c, tmp_path / "log", limits=limits)) for c in cases(200)]
    assert sum(points <= 0.01 for points in lost) >= 190


def test_limits_decide_in_their_order() -> None:
    cheap = Costs(stall_s=0.01, write_s=1.0, step_s=1.0)
    rare = 200 * _HOUR
    assert wanted_s(cheap, rare, _FREE)[0] == pytest.approx(120, rel=0.02)
    assert wanted_s(cheap, rare, Limits(lost_s=60))[0] == 60
    slow = Costs(stall_s=1.0, write_s=100.0, step_s=1.0)
    assert wanted_s(slow, _HOUR, Limits())[0] == 120
    assert "must be written before the next" in wanted_s(slow, _HOUR, Limits())[1]
    assert wanted_s(slow, rare, Limits())[0] == pytest.approx(1195, rel=0.01)
    assert wanted_s(slow, rare, Limits(time_limit_s=4000))[0] == 1000
    assert "four saves" in wanted_s(slow, rare, Limits(time_limit_s=4000))[1]
    dear = Costs(stall_s=60.0, write_s=60.0, step_s=1.0)
    assert wanted_s(dear, 10**9, Limits())[0] == 1800
    # One per cent for saving would be 6,000 s: not for a whole point of goodput.
    assert 1 < wanted_s(dear, 11_135, Limits(lost_s=9999))[0] / 1116 <= 1.5


def test_it_moves_slowly_and_not_at_all_for_little() -> None:
    never, limits = Failures(), Limits(lost_s=math.inf, stall_share=1.0)

    def following(current: int | None, stall_s: float) -> int:
        costs = Costs(stall_s=stall_s, write_s=0.0, step_s=10.0)
        return choose(costs, never, ranks=1024, limits=limits, current=current).steps

    settled = following(None, 1.0)
    assert settled == pytest.approx(59, rel=0.1)  # sqrt(2 x 1 s x 49 h), in steps of 10 s
    assert following(settled, 1.3) == settled  # 14 % more
    assert following(settled, 100.0) == 2 * settled
    assert following(settled, 0.0001) == -(-settled // 2)
    assert following(1, 1.0) == 2


def test_failures_are_learned_and_forgotten() -> None:
    def between(failures: int, hours: float, ranks: int = 1024) -> float:
        seen = Failures(weighted=failures, running_s=hours * _HOUR, count=failures)
        return mean_between_s(seen, ranks=ranks) / _HOUR

    assert between(0, 0) == pytest.approx(50_000 / 1024, rel=0.15)
    assert between(0, 1000) > 5 * between(0, 0)
    assert between(20, 20) == pytest.approx(1, rel=0.3)
    # Two ranks that fail each hour: their size says once in three years.
    assert between(1, 1, ranks=2) > 1000
    assert between(5, 5, ranks=2) == pytest.approx(1, rel=0.5)
    day = 86400.0
    old, new = (faded([(0.0, day, True)], now) for now in (91 * day, day))
    assert old.weighted < 0.06 < 0.9 < new.weighted <= 1
    assert old.running_s < 0.06 * day < 0.9 * day < new.running_s


def test_only_attempts_that_lost_work_count() -> None:
    lines: list[dict[str, Any]] = [
        {"started": 1.0, "ended": 2.0, "cause": "crash", "exit_code": 76, "why": ""},
        {"started": 3.0, "ended": 4.0, "cause": "preempt", "exit_code": 75, "why": ""},
        {"started": 5.0, "ended": 6.0, "cause": "preempt", "exit_code": 76, "why": ""},
        {"started": 7.0, "ended": 8.0, "cause": None, "exit_code": 0, "why": ""},
        {"started": None, "ended": 9.0, "cause": "config", "exit_code": 2, "why": ""},
    ]
    assert [failed for *_, failed in spans_of(lines)] == [True, False, True, False]


def test_an_attempt_that_follows_knows_what_was_measured(tmp_path: Path) -> None:
    def planner(saved: dict[str, object] | None, step: int) -> SaveWhenBest:
        return SaveWhenBest(
            Alone(), checkpoint_bytes=10**6, asynchronous=True, attempts_log=tmp_path / "none",
            step=step, saved=saved, clock=clock,
        )  # fmt: skip

    clock = Clock()
    first = planner(None, 0)
    for step in range(1, 5):
        clock.now += 2.0
        assert not first.due(step)
    assert first.saved()["every"] is None  # nobody knows how long a step takes
    clock.now += 2.0
    first.due(5)
    every = first.saved()["every"]
    costs = assumed(rank_bytes=10**6, all_bytes=10**6, asynchronous=True, step_s=2.0)
    assert costs.stall_s == pytest.approx(0.001)
    told = first.observe(report(5, stall_s=0.001, write_s=0.005))
    assert told.save_every == every
    assert f"every {every} steps: a save stalls 0.001 s" in told.save_every_why  # as first chosen
    seen = first.observe(report(5, stall_s=150.0, write_s=90.0))
    assert seen.save_every == min(2 * every, 900)
    assert f"every {seen.save_every} steps" in seen.save_every_why
    assert "a save stalls 45 s and takes 90 s, a step 2 s" in seen.save_every_why
    again = first.observe(report(6, stall_s=0.0, fine=False))
    assert (again.save_every, again.save_every_why) == (0, "")
    clock.tick = 2.0
    second = planner(json.loads(json.dumps(first.saved())), 100)
    assert second.saved() == first.saved()
    found = [step for step in range(101, 1101) if second.due(step)]
    assert found == [100 + second.saved()["every"]] == [1000]  # half an hour, limits say


def test_a_way_back_does_not_end_saving(tmp_path: Path) -> None:
    saved = {"every": 10, "stall_s": 1.0, "write_s": [1.0], "step_s": 60.0}
    planner = SaveWhenBest(
        Alone(), checkpoint_bytes=1, asynchronous=True, attempts_log=tmp_path / "none", step=50,
        saved=saved, clock=Clock(tick=60.0),
    )  # fmt: skip
    assert [step for step in range(51, 54) if planner.due(step)] == []
    assert [step for step in range(41, 62) if planner.due(step)] == [61]  # 20 by now: half an hour


def test_all_ranks_save_at_the_steps_of_rank_0(tmp_path: Path) -> None:
    """Each has a clock of its own, and other costs; one exchange at the start, one a save."""

    def rank(world) -> list[int]:  # type: ignore[no-untyped-def]
        me, clock = world.place.rank, Clock()
        planner = SaveWhenBest(
            world, checkpoint_bytes=10**9, asynchronous=True, attempts_log=tmp_path / "none",
            step=0, clock=clock,
        )  # fmt: skip
        found = []
        for step in range(1, 400):
            clock.now += 10.0 * (1 + me)
            if planner.due(step):
                found.append(step)
                planner.observe(report(step, stall_s=1.0 + 50 * me, write_s=2.0))
        return found

    first, *others = run_threads(3, rank)
    assert isinstance(first, list)
    assert len(first) >= 2
    assert all(other == first for other in others)


# --- with states in memory ------------------------------------------------------------------------


def test_what_memory_outlives_lengthens_the_interval_by_its_root() -> None:
    costs = Costs(stall_s=1.0, write_s=1.0, step_s=1.0)
    seen = Failures(weighted=40.0, running_s=400 * _HOUR, count=40)
    alone = choose(costs, seen, ranks=8, limits=_FREE, current=None)
    kept = choose(
        costs, seen, ranks=8, limits=_FREE, current=None, memory=outlived(4, seen=16, of=20)
    )
    assert kept.steps == pytest.approx(alone.steps * math.sqrt(1 / (1 - 0.8)), rel=0.02)
    assert "of which memory outlives 80% (16 of 20)" in kept.why
    assert "memory" not in alone.why


def test_the_share_that_memory_outlives_is_learned_and_never_taken_for_all() -> None:
    assert outlived(1).expected == 0.5
    assert outlived(2).expected == 0.8
    assert outlived(1, seen=0, of=16).expected == pytest.approx(0.1)
    assert outlived(2, seen=1000, of=1000).expected == 0.95
    assert Outlived().expected == 0.0


def test_attempts_that_began_later_than_the_disk_went_on_from_memory() -> None:
    lines = [
        {"cause": "crash", "from_step": 0, "checkpoint_step": 100},
        {"cause": "crash", "from_step": 140, "checkpoint_step": 100},  # from memory
        {"cause": "node", "from_step": 180, "checkpoint_step": 200},  # from memory
        {"cause": "user", "from_step": 200, "checkpoint_step": 210},  # from the disk
        {"cause": "crash", "from_step": 300, "checkpoint_step": 300},  # no failure before it
        {"cause": "crash", "from_step": None, "checkpoint_step": 300},  # it never began
    ]
    assert went_on_from_memory(lines) == (2, 3)
