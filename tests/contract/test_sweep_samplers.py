"""The same seed proposes the same trials, whatever dies between them."""

from __future__ import annotations

import pytest

from launch.sweep.samplers import AtRandom, Sampler, Told, sampler_of
from launch.sweep.space import Choice, Condition, Interval, Point, Space
from tests.helpers.sweeps import section

LR = Interval("lr", 1e-4, 1.0, is_log=True)
WHOLE = Interval("n", 1, 4, is_whole=True, is_log=True)
KIND = Choice("kind", (("kind=a",), ("kind=b",)))
ONLY_B = Interval("m", 0.0, 1.0, when=Condition("kind", 1))
SPACE = Space((LR, WHOLE, KIND, ONLY_B))
NUMBERS = Space((LR, Interval("x", -5.0, 5.0)))


def value(point: Point) -> float:
    return float((point.get("x", 0.0) - 2) ** 2 + abs(point["lr"] - 0.01))


def asked(sampler: Sampler, count: int, *, after: int = 0) -> list[Point]:
    """`after`: trials that are asked and told first, as a sweep that is started again does."""
    found = []
    for number in range(1, after + count + 1):
        found.append(sampler.ask(number))
        if number % 7 == 0:
            sampler.tell(Told(number))
        elif number % 5 == 0:
            sampler.tell(Told(number, at=(10, value(found[-1]))))
        else:
            sampler.tell(Told(number, (value(found[-1]),)))
    return found[after:]


@pytest.mark.parametrize("kind", ["random", "tpe", "cmaes", "nsga2"])
def test_a_sweep_started_again_proposes_the_same(kind: str) -> None:
    space = NUMBERS if kind == "cmaes" else SPACE
    sampling = section(sampler=kind)
    whole = asked(sampler_of(sampling, space), 16)
    again = asked(sampler_of(sampling, space), 6, after=10)
    assert whole[10:] == again
    assert whole != asked(sampler_of(section(sampler=kind, seed=2), space), 16)


def test_chance_stays_within_the_space_and_reaches_its_ends() -> None:
    points = [AtRandom(SPACE, 3).ask(n) for n in range(1, 400)]
    assert all(1e-4 <= p["lr"] <= 1.0 for p in points)
    assert {p["n"] for p in points} == {1, 2, 3, 4}
    assert all(("m" in p) == (p["kind"] == 1) for p in points)
    below = sum(p["lr"] < 1e-2 for p in points)
    assert 160 < below < 240  # half of the logarithmic interval


def test_one_more_dimension_moves_no_other() -> None:
    few, more = AtRandom(Space((LR,)), 1), AtRandom(SPACE, 1)
    assert [few.ask(n)["lr"] for n in range(1, 9)] == [more.ask(n)["lr"] for n in range(1, 9)]


def test_what_was_told_moves_tpe_to_where_it_is_good() -> None:
    sampler = sampler_of(section(sampler="tpe"), NUMBERS)
    points = asked(sampler, 40)
    early, late = points[:10], points[-10:]
    assert sum(map(value, late)) < 0.5 * sum(map(value, early))


def test_several_metrics_are_told_together() -> None:
    sampling = section(sampler="tpe", metrics=["a", "b"], goals=["min", "max"])
    sampler = sampler_of(sampling, SPACE)
    sampler.ask(1)
    sampler.tell(Told(1, (1.0, 2.0)))
    assert "lr" in sampler.ask(2)
