"""Who is called slow: never a healthy rank, a slow one within twenty steps, once."""

from __future__ import annotations

import random

import pytest

from launch.watch.stragglers import WINDOW, Stragglers


def healthy(seed: int, *, steps: int = 200, ranks: int = 4) -> list[dict[int, dict[int, float]]]:
    """Growing views of `steps` steps of 50 ms +- 10 %, with a hiccup of 10 x now and then."""
    drawn = random.Random(seed)
    work = {
        rank: {
            step: 0.05 * drawn.gauss(1, 0.1) * (10 if drawn.random() < 0.03 else 1)
            for step in range(1, steps + 1)
        }
        for rank in range(ranks)
    }
    return [
        {rank: {s: each[s] for s in each if step - 32 < s <= step} for rank, each in work.items()}
        for step in range(1, steps + 1)
    ]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("ranks", [2, 4])
def test_healthy_ranks_are_never_flagged(seed: int, ranks: int) -> None:
    watching = Stragglers()
    assert [view for view in healthy(seed, ranks=ranks) if watching.look(view) != ([], [])] == []


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_a_slow_rank_is_flagged_within_twenty_steps_and_once(ranks: int, factor: float) -> None:
    watching, flagged, well = Stragglers(), [], []
    for step, view in enumerate(healthy(1, ranks=ranks), start=1):
        slowed = {s: t * (factor if 60 <= s < 120 else 1) for s, t in view[1].items()}
        slow, again = watching.look(view | {1: slowed})
        flagged += [(step, one.rank, one.ratio) for one in slow]
        well += [(step, rank) for rank in again]
    (step, rank, ratio), *rest = flagged
    assert rank == 1
    assert 60 < step <= 60 + WINDOW
    assert ratio > 1.5
    assert rest == []
    assert [rank for _, rank in well] == [1]
