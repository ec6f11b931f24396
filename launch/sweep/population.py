"""Population-based training: at every rung the worst trials end, and as many new ones go on from
checkpoints of the best, with settings a little beside theirs. Pure.

Source: Jaderberg et al. 2017, Population Based Training of Neural Networks, arXiv 1711.09846, s. 4
(truncation selection; a number is multiplied or divided, a choice gives way to its neighbour).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from launch.sweep.journal import Trial
from launch.sweep.judge import next_rung
from launch.sweep.meeting import Child, Meeting
from launch.sweep.space import Choice, Dimension, Point, Space

_FACTOR = 1.25


def succession(
    trials: Mapping[int, Trial],
    space: Space,
    steps: Sequence[int],
    *,
    total: int,
    factor: int,
    seed: int,
) -> Meeting | None:
    """None while anybody of the `total` is on the way. The worst 1/`factor` go; trials that failed
    or diverged since are replaced too, those that a person stopped are not.
    """
    members = [one for one in trials.values() if not one.has_ended]
    if len([one for one in trials.values() if not one.parent]) < total:
        return None
    if not members or any(one.state != "paused" for one in members):
        return None
    step = next_rung(members[0], steps)
    assert step is not None
    order = sorted(members, key=lambda one: (one.rungs[step], one.number))
    few = len(order) // factor
    top, goes = order[: max(few, 1)], order[len(order) - few :]
    stopped = sum(one.state == "stopped" for one in trials.values())
    places = total - stopped - (len(order) - few)
    first = max(trials) + 1
    children = []
    for number in range(first, first + places):
        chance = random.Random(f"{seed}/{step}/{number}")
        parent = chance.choice(top)
        children.append(Child(number, parent.number, beside(parent.point, space, chance)))
    gone = {one.number for one in goes}
    stays = tuple(sorted(one.number for one in order if one.number not in gone))
    return Meeting(step, stays, tuple(sorted(gone)), tuple(children))


def beside(point: Point, space: Space, chance: random.Random) -> dict[str, int | float]:
    return space.draw(lambda one: _moved(one, point[one.name], chance))


def _moved(one: Dimension, value: int | float, chance: random.Random) -> int | float:
    up = chance.random() < 0.5
    if isinstance(one, Choice):
        return min(max(int(value) + (1 if up else -1), 0), len(one.alternatives) - 1)
    moved = min(max(value * _FACTOR if up else value / _FACTOR, one.low), one.high)
    return round(moved) if one.is_whole else moved
