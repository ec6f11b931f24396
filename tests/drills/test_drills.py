"""Real runs, broken on purpose and judged by the bench's oracle. `make drills` runs the long forms.

Of the fifteen most valuable drills, D1 is tests/contract/test_checkpoint_crashes.py, D13 and D26
are in short form tests of their rooms (tests/distributed/test_watch.py and those of the guard).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.drills.bench import Bench, run_one
from launch.drills.report import table
from launch.drills.runs import Site
from launch.drills.table import DRILLS

_HERE = ("D3", "D9", "D35", "D12", "D14", "D37", "D4", "D7", "D21", "D25", "D2", "D40a", "D40b")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Site(tmp_path_factory.mktemp("drills")) as site:
        yield Bench(site, short=True)


@pytest.mark.parametrize("label", _HERE)
def test_a_drill_holds(bench: Bench, label: str) -> None:
    (drill,) = [one for one in DRILLS if one.label == label]
    ran = run_one(bench, drill)
    if ran.verdict == "late":  # a machine stands still at times; nothing is late twice by chance
        ran = run_one(bench, drill)
    print(f"\n{table([ran])}")
    assert not ran.is_bad, table([ran])


def test_every_drill_is_carried_out_or_says_what_it_needs(tmp_path: Path) -> None:
    assert {drill.number for drill in DRILLS} == set(range(1, 41))
    labels = [drill.label for drill in DRILLS]
    assert len(set(labels)) == len(labels)
    for drill in DRILLS:
        assert drill.run is not None or drill.needs, drill.label
        assert drill.fault, drill.label
        assert drill.promise, drill.label
        assert drill.bound, drill.label
