"""Fault points: nothing where no drill is on, exactly what was planned where one is."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import time
import timeit
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer import faultpoints
from trainer.errors import Refused
from trainer.faultpoints import (
    ENVIRONMENT,
    POINTS,
    Drilled,
    Fault,
    arm,
    arm_from,
    as_text,
    at_step,
    faultpoint,
    parse,
    planned,
)

_ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _unarmed() -> Iterator[None]:
    yield
    arm((), rank=0)


def _called() -> set[str]:
    """The names in every `faultpoint("...")` of the product; anything but a literal fails."""
    found = set()
    for path in (p for room in ("trainer", "launch") for p in (_ROOT / room).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "faultpoint" in text else ():
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "faultpoint":
                literal = node.args[0]
                assert isinstance(literal, ast.Constant), f"{path}: a name that is not a literal"
                found.add(literal.value)
    return found


def test_every_point_in_the_code_is_in_the_table_and_every_one_of_the_table_is_in_the_code() -> (
    None
):
    assert _called() == POINTS.keys()


def test_an_unarmed_point_costs_at_most_100_ns() -> None:
    """The best of many rounds: what others do on the machine is not the point's cost."""
    calls = 20_000
    plain = min(
        timeit.repeat("f('step.begin')", globals={"f": faultpoint}, number=calls, repeat=40)
    )
    ns = plain / calls * 1e9
    print(f"an unarmed fault point: {ns:.0f} ns")
    assert ns <= 100


def test_a_fault_happens_at_its_hit_of_its_step_on_its_rank_and_once() -> None:
    arm([Fault("step.end", "raise", rank=1, hit=2, step=3)], rank=1)
    for step in (1, 2, 3):
        at_step(step)
        faultpoint("step.end")  # step 3: the first passing that counts
    faultpoint("step.begin")
    with pytest.raises(Drilled, match=r"drill at step\.end"):
        faultpoint("step.end")
    faultpoint("step.end")


def test_another_ranks_fault_leaves_this_one_unarmed() -> None:
    arm([Fault("step.end", "raise", rank=1)], rank=0)
    faultpoint("step.end")
    assert faultpoints._armed is None


def test_a_fault_may_happen_several_times_in_a_row_or_always() -> None:
    arm([Fault("save.begin", "enospc", hit=2, times=2)], rank=0)
    seen = [_raises() for _ in range(5)]
    assert seen == [False, True, True, False, False]
    arm([Fault("save.begin", "enospc", times=0)], rank=0)
    assert [_raises() for _ in range(3)] == [True] * 3


def _raises() -> bool:
    try:
        faultpoint("save.begin")
    except OSError as e:
        return "No space left" in str(e)
    return False


def test_with_a_token_a_fault_happens_once_whatever_is_started_again(tmp_path: Path) -> None:
    token = str(tmp_path / "first")
    fault = Fault("step.end", "raise", step=4, token=token)
    for rank, life, happens in [(0, 1, True), (0, 2, False), (1, 1, True), (1, 2, False)]:
        arm([fault], rank=rank)  # a new process of this rank
        at_step(4 + life)
        if happens:
            with pytest.raises(Drilled):
                faultpoint("step.end")
        else:
            faultpoint("step.end")
    said = json.loads(Path(f"{token}.0").read_text())
    assert (said["rank"], said["step"]) == (0, 5)
    assert abs(said["time"] - time.time()) < 60


def test_a_value_is_damaged_by_who_hands_it_over() -> None:
    seen: list[tuple[str, int]] = []
    arm([Fault("step.gradient", "nan", value=7)], rank=0)
    faultpoint("step.gradient", lambda how, element: seen.append((how, element)))
    assert seen == [("nan", 7)]


def test_a_process_can_be_killed_and_stopped_at_a_point() -> None:
    program = (
        "import sys; from trainer.faultpoints import arm, faultpoint, parse\n"
        "arm(parse(sys.argv[1]), rank=0); faultpoint('end.begin'); print('alive')"
    )
    argv = [sys.executable, "-c", program]
    for fault, code in [
        ("point=end.begin,action=kill", -9),
        ("point=end.begin,action=signal,value=15", -15),
        ("point=end.begin,action=eio", 1),
        ("point=end.begin,action=sleep,value=0.01", 0),
    ]:
        done = subprocess.run(
            [*argv, fault], cwd=_ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == code, (fault, done.stderr)
        assert ("alive" in done.stdout) is (code == 0)


def test_faults_travel_as_text() -> None:
    faults = [
        Fault("save.begin", "kill", rank=1, hit=2, step=7, token="/a/b"),
        Fault("step.end", "sleep", value=0.5, times=0),
    ]
    assert parse(as_text(faults)) == faults
    assert parse("") == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("point=save.bgin,action=kill", r"no fault point 'save\.bgin'; start\.imported"),
        ("point=save.begin,action=burn", "no action 'burn'; kill, stop"),
        ("point=save.begin,action=kill,node=1", "'node' is none of rank, hit"),
        ("point=save.begin,action=kill,hit=two", "invalid literal"),
        ("point=save.begin,action=nan", r"save\.begin has no value that 'nan' could damage"),
    ],
)
def test_a_drill_that_means_nothing_is_refused(text: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        parse(text)


def test_a_run_that_is_no_drill_is_never_broken() -> None:
    environment = {ENVIRONMENT: "point=step.end,action=kill"}
    with pytest.raises(
        Refused, match=r"plans 1 faults.*unset LONGHAUL_DRILL.*drills\.enabled=true"
    ):
        planned(environment, enabled=False)
    with pytest.raises(Refused):
        arm_from(environment, enabled=False, rank=0)
    assert faultpoints._armed is None
    arm_from({}, enabled=False, rank=0)  # nothing planned: nothing to refuse
    arm_from(environment, enabled=True, rank=0)
    assert faultpoints._armed is not None
