"""A sweep from its first trial to its end, over recorded runs: who goes on, what it costs, and that
whatever dies loses nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.sweep.best import best_trials
from launch.sweep.journal import Trial, read_trials
from launch.sweep.place import How
from tests.helpers.sweeps import (
    Killed,
    Recorded,
    curve_of_learning_rate,
    money,
    pruner,
    sweeper,
)
from trainer.errors import ConfigError


def states(folder: Path) -> dict[int, str]:
    return {n: one.state for n, one in read_trials(folder / "trials.jsonl").items()}


def points(folder: Path) -> list[Any]:
    return [dict(one.point) for one in read_trials(folder / "trials.jsonl").values()]


def best_x(folder: Path) -> float:
    (best,) = best_trials(read_trials(folder / "trials.jsonl"), ["min"])
    return float(best.point["x"])


def test_all_trials_run_to_their_end_within_the_limit_of_concurrency(tmp_path: Path) -> None:
    place = Recorded()
    assert sweeper(tmp_path, place, trials=7, concurrency=3).run() == "done"
    assert set(states(tmp_path).values()) == {"finished"}
    assert place.most_active == 3
    assert sorted(place.starts) == list(range(1, 8))
    xs = [one["x"] for one in points(tmp_path)]
    assert best_x(tmp_path) == min(xs, key=lambda x: abs(x - 2))


def test_asha_finds_the_best_of_the_full_sweep_for_less(tmp_path: Path) -> None:
    whole, early = Recorded(), Recorded()
    sweeper(tmp_path, whole, trials=18, concurrency=3).run()
    (tmp_path / "asha").mkdir()
    ended = sweeper(tmp_path / "asha", early, trials=18, concurrency=3, pruner=pruner("asha")).run()
    assert ended == "done"
    assert points(tmp_path / "asha") == points(tmp_path)
    assert best_x(tmp_path / "asha") == best_x(tmp_path)
    assert early.spent < 0.4 * whole.spent
    assert list(states(tmp_path / "asha").values()).count("pruned") >= 9


def test_the_median_ends_what_is_worse_than_most(tmp_path: Path) -> None:
    place = Recorded()
    sweeper(tmp_path, place, trials=12, pruner=pruner("median")).run()
    pruned = [n for n, state in states(tmp_path).items() if state == "pruned"]
    assert pruned
    assert min(pruned) > 3  # so many must have been there
    trials = read_trials(tmp_path / "trials.jsonl")
    assert all("median" in trials[n].why for n in pruned)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_halving_ends_the_same_way_whatever_the_timing(tmp_path: Path, concurrency: int) -> None:
    """9 trials, rungs at 10, 30 and 90 of 100: 3 go on, then 1."""
    ends = []
    for name, speed in (("a", {}), ("b", {n: 1.0 + n % 4 for n in range(1, 10)})):
        folder = tmp_path / name
        folder.mkdir()
        place = Recorded(speed=speed)
        made = sweeper(folder, place, trials=9, concurrency=concurrency, pruner=pruner("halving"))
        assert made.run() == "done"
        ends.append((points(folder), states(folder)))
        assert place.starts.count(next(n for n, s in states(folder).items() if s == "finished")) > 1
    assert ends[0] == ends[1]
    assert sorted(ends[0][1].values()) == ["finished"] + ["pruned"] * 8
    xs = [one["x"] for one in ends[0][0]]
    assert best_x(tmp_path / "a") == min(xs, key=lambda x: abs(x - 2))


def test_hyperband_judges_early_late_and_never_the_same_way_whatever_the_timing(
    tmp_path: Path,
) -> None:
    """Rungs at 10, 30 and 90 of 100: brackets of 27, 12, 6 and 4 trials."""
    ends = []
    for name, speed in (("a", {}), ("b", {n: 1.0 + n % 4 for n in range(1, 50)})):
        folder = tmp_path / name
        folder.mkdir()
        place = Recorded(speed=speed)
        made = sweeper(folder, place, trials=49, concurrency=5, pruner=pruner("hyperband"))
        assert made.run() == "done"
        assert place.stopped == 0  # they leave at their rungs by themselves
        ends.append((points(folder), states(folder)))
        cost = place.spent / place.ranks / place.last_step / 49
        assert cost < 0.5
    assert ends[0] == ends[1]
    finished = [n for n, state in ends[0][1].items() if state == "finished"]
    brackets = (range(1, 28), range(28, 40), range(40, 46), range(46, 50))
    assert [sum(n in b for n in finished) for b in brackets] == [1, 1, 2, 4]
    xs = [one["x"] for one in ends[0][0]]
    assert best_x(tmp_path / "a") == min(xs, key=lambda x: abs(x - 2))


def test_what_was_reported_last_counts_where_a_rung_has_no_report(tmp_path: Path) -> None:
    place = Recorded(every=7)  # rungs are at 10 and 30
    assert sweeper(tmp_path, place, trials=4, pruner=pruner("halving")).run() == "done"
    trials = read_trials(tmp_path / "trials.jsonl")
    assert sorted(states(tmp_path).values()) == ["finished", "pruned", "pruned", "pruned"]
    assert {one.rungs[10] for one in trials.values()} == {
        place.curve(one, 7) for one in trials.values()
    }


@pytest.mark.parametrize("kind", ["none", "asha", "halving", "hyperband"])
@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_a_sweeper_that_is_killed_loses_nothing(tmp_path: Path, kind: str, sampler: str) -> None:
    values: dict[str, Any] = {"trials": 9, "pruner": pruner(kind), "sampler": sampler}
    if kind in ("none", "asha"):  # the first ten of tpe are at random
        values |= {"generation": 3, "trials": 15 if sampler == "tpe" else 9}
    whole = tmp_path / "whole"
    whole.mkdir()
    sweeper(whole, Recorded(), **values).run()
    broken, place = tmp_path / "broken", Recorded()
    broken.mkdir()
    kills = 0
    while True:
        place.kill_at = place.clock + 37
        try:
            assert sweeper(broken, place, **values).run() == "done"
            break
        except Killed:
            kills += 1
    assert kills >= 4
    assert points(broken) == points(whole)
    assert states(broken) == states(whole)


@pytest.mark.parametrize("kind", ["asha", "halving"])
def test_what_was_told_and_not_heard_is_told_again(tmp_path: Path, kind: str) -> None:
    place = Recorded(kill_on_stop=True, pauses=False)
    with pytest.raises(Killed):
        sweeper(tmp_path, place, trials=3, pruner=pruner(kind)).run()
    told = next(t for t in read_trials(tmp_path / "trials.jsonl").values() if t.told_to)
    assert sweeper(tmp_path, place, trials=3, pruner=pruner(kind)).run() == "done"
    assert place.cost[told.number] < 60  # it did not run to its end first


def test_halving_takes_those_that_were_faster_than_the_word_to_stop(tmp_path: Path) -> None:
    """A run that ended before it could be told meets the others at the rung all the same."""
    place = Recorded(speed=dict.fromkeys(range(1, 10), 500.0), pauses=False)
    assert sweeper(tmp_path, place, trials=9, pruner=pruner("halving")).run() == "done"
    assert sorted(states(tmp_path).values()) == ["finished"] + ["pruned"] * 8


@pytest.mark.parametrize(
    "limit",
    [{"gpu_hours": 0.15}, {"gpu_hours": None, "money": 0.3, "price": 2.0}],
)
@pytest.mark.parametrize("kind", ["none", "asha"])
def test_the_budget_is_never_exceeded(tmp_path: Path, limit: dict[str, Any], kind: str) -> None:
    place = Recorded(grace_s=5.0)
    made = sweeper(
        tmp_path, place, trials=50, concurrency=3, budget=money(**limit), pruner=pruner(kind)
    )
    assert made.run() == "budget"
    assert place.spent <= 0.15 * 3600
    assert place.spent == pytest.approx(made.spent, abs=1e-6)
    assert list(states(tmp_path).values()).count("finished") >= 1


def test_a_budget_smaller_than_one_trial_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one trial of 2 ranks may take 2"):
        sweeper(tmp_path, Recorded(), trials=3, trial_hours=1.0, budget=money(1.5))
    with pytest.raises(ConfigError, match=r"sweep\.budget\.money"):
        sweeper(tmp_path, Recorded(), trials=3, budget=money(None, money=0.001, price=2.0))


def test_what_the_first_trials_cost_keeps_one_from_beginning(tmp_path: Path) -> None:
    """200 rank-seconds a trial, 500 in all: the third would not fit, and is not begun."""
    place = Recorded()
    assert sweeper(tmp_path, place, trials=5, budget=money(500 / 3600)).run() == "budget"
    assert states(tmp_path) == {1: "finished", 2: "finished"}
    again = sweeper(tmp_path, place, trials=5, budget=money(2000 / 3600))
    assert again.run() == "done"
    assert len(states(tmp_path)) == 5


def test_a_trial_that_something_else_ended_is_started_again(tmp_path: Path) -> None:
    script = {2: [("again", "node lost"), ("preempted", ""), ("again", "killed")]}
    place = Recorded(script=script)  # type: ignore[arg-type]
    assert sweeper(tmp_path, place, trials=3, retries=2).run() == "done"
    assert place.starts.count(2) == 4
    assert set(states(tmp_path).values()) == {"finished"}


def test_failed_is_not_bad_and_is_not_started_for_ever(tmp_path: Path) -> None:
    place = Recorded(script={1: [("again", "node lost")] * 9, 2: [("diverged", "loss is NaN")]})
    assert sweeper(tmp_path, place, trials=4, retries=1).run() == "done"
    assert place.starts.count(1) == 2
    assert states(tmp_path) == {1: "failed", 2: "diverged", 3: "finished", 4: "finished"}
    told = {n: one.told for n, one in read_trials(tmp_path / "trials.jsonl").items()}
    assert not told[1].is_bad
    assert told[2].is_bad
    assert not told[1].values


def test_all_trials_with_one_error_stop_the_sweep(tmp_path: Path) -> None:
    script = {n: [("refused", "corpus.txt line 7: not UTF-8")] for n in range(1, 20)}
    place = Recorded(script=script)  # type: ignore[arg-type]
    made = sweeper(tmp_path, place, trials=19)
    assert made.run() == "same error"
    assert made.same_error == "corpus.txt line 7: not UTF-8"
    assert len(place.starts) == 3
    refusing = Recorded(refuses="cannot be")
    (tmp_path / "b").mkdir()
    assert sweeper(tmp_path / "b", refusing, trials=9).run() == "same error"


def test_a_metric_that_nobody_reports_is_found_at_the_first_report(tmp_path: Path) -> None:
    place = Recorded(metric="eval_accuracy")
    made = sweeper(tmp_path, place, trials=9)
    assert made.run() == "same error"
    assert made.same_error == "sweep.metrics: no trial reports eval_loss; there is eval_accuracy"
    assert max(place.steps.values()) < 30  # none ran to its end


@pytest.mark.parametrize("missed", [{"deaf": 3}, {"forgetful": 3}])
def test_a_word_to_stop_that_nobody_took_is_said_again(
    tmp_path: Path, missed: dict[str, int]
) -> None:
    """A scheduler that does not answer; a job that was requeued just then."""
    place = Recorded(stop_at=30, **missed)  # type: ignore[arg-type]
    assert sweeper(tmp_path, place, trials=2, concurrency=2).run() == "stopped"
    assert states(tmp_path) == {1: "waiting", 2: "waiting"}
    assert max(place.steps.values()) < 50


def test_what_the_place_does_not_take_is_tried_again_later_and_is_no_failure(
    tmp_path: Path,
) -> None:
    """A limit on the jobs of a user, for example."""
    script: dict[int, list[tuple[How, str]]] = {n: [("later", "too many jobs")] * 3 for n in (2, 3)}
    place = Recorded(script=script)
    assert sweeper(tmp_path, place, trials=3, concurrency=3, retries=0).run() == "done"
    assert set(states(tmp_path).values()) == {"finished"}
    assert not any(one.failures for one in read_trials(tmp_path / "trials.jsonl").values())
    assert place.starts.count(2) == 4


def test_a_place_that_takes_nothing_is_given_up_in_the_end(tmp_path: Path) -> None:
    script: dict[int, list[tuple[How, str]]] = {n: [("later", "no answer")] * 9 for n in range(9)}
    place = Recorded(script=script)
    made = sweeper(tmp_path, place, trials=5, retries=1)
    assert made.run() == "same error"
    assert made.same_error == "no answer"
    assert len(place.starts) == 6
    assert place.clock > len(place.starts)  # it was given time


def test_stopping_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    place = Recorded(stop_at=130)
    assert sweeper(tmp_path, place, trials=4, concurrency=2).run() == "stopped"
    assert sorted(states(tmp_path).values()) == ["finished", "finished", "waiting", "waiting"]
    assert max(place.steps.values()) == 100
    place.stop_at = None
    assert sweeper(tmp_path, place, trials=4, concurrency=2).run() == "done"
    assert place.starts == [1, 2, 3, 4, 3, 4]
    assert set(states(tmp_path).values()) == {"finished"}


def test_trials_are_added_to_a_sweep_that_has_ended(tmp_path: Path) -> None:
    sweeper(tmp_path, place := Recorded(), trials=4, pruner=pruner("halving")).run()
    first = states(tmp_path)
    sweeper(tmp_path, place, trials=8, pruner=pruner("halving")).run()
    after = states(tmp_path)
    assert {n: after[n] for n in first} == first
    assert sorted(after[n] for n in range(5, 9)) == ["finished", "pruned", "pruned", "pruned"]


def test_a_trial_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    place = Recorded(speed={1: 0.1})
    sweeper(tmp_path, place, trials=2, trial_hours=200 / 3600).run()
    assert states(tmp_path) == {1: "pruned", 2: "finished"}
    assert "trial_hours" in read_trials(tmp_path / "trials.jsonl")[1].why


def test_a_generation_is_proposed_from_all_before_it_and_from_no_more(tmp_path: Path) -> None:
    """Speeds change who ends first, and none of the proposals."""
    found = []
    for name, speed in (("a", {}), ("b", {n: 1.0 + (n * 7) % 3 for n in range(1, 13)})):
        (tmp_path / name).mkdir()
        values: dict[str, Any] = {"trials": 12, "sampler": "tpe", "generation": 4}
        sweeper(tmp_path / name, Recorded(speed=speed), concurrency=3, **values).run()
        found.append(points(tmp_path / name))
    assert found[0] == found[1]


def test_a_maximum_is_the_best_where_more_is_better(tmp_path: Path) -> None:
    def rising(trial: Trial, step: int) -> float:
        return -curve_of_learning_rate(trial, step)

    place = Recorded(curve=rising)
    made = sweeper(tmp_path, place, trials=12, goals=["max"], pruner=pruner("halving"))
    assert made.run() == "done"
    (best,) = best_trials(read_trials(tmp_path / "trials.jsonl"), ["max"])
    assert best.point["x"] == min((p["x"] for p in points(tmp_path)), key=lambda x: abs(x - 2))
