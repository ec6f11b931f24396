"""The goodput model: the simulation against the formula, the formula against published numbers."""

from __future__ import annotations

import math

import pytest

from trainer.capacity.goodput import (
    Parts,
    best_interval,
    daly,
    exponential_gaps,
    goodput,
    simulate,
    young,
)

_M = 3600 * 50_677 / 16_384  # seconds between interruptions of Llama 3's published run
_ROWS = [  # parts, interval, goodput in percent by an independent calculation
    (Parts(stall_s=60, detect_s=1800, restart_s=1200), 3600, 65.8),
    (Parts(stall_s=60, detect_s=1800, restart_s=1200), young(60, _M), 71.1),
    (Parts(stall_s=60, detect_s=60, restart_s=600), young(60, _M), 85.1),
    (Parts(stall_s=10, write_s=120, detect_s=60, restart_s=600), young(10, _M), 89.6),
    (Parts(stall_s=1, write_s=60, detect_s=60, restart_s=600), young(1, _M), 92.7),
    (Parts(stall_s=1, write_s=60, detect_s=10, restart_s=300), young(1, _M), 95.5),
    (Parts(stall_s=1, write_s=60, detect_s=10, restart_s=120), young(1, _M), 97.0),
    (Parts(stall_s=0.2, write_s=5, detect_s=10, restart_s=60), 60, 98.7),
]


@pytest.mark.parametrize(("parts", "interval", "percent"), _ROWS)
def test_the_formula_gives_the_known_figures(parts: Parts, interval: float, percent: float) -> None:
    """They were simulated elsewhere; formula and that simulation differ by up to 0.35 points."""
    assert 100 * goodput(parts, interval, _M) == pytest.approx(percent, abs=0.36)


@pytest.mark.parametrize(("parts", "interval", "percent"), _ROWS)
def test_the_simulation_agrees_with_the_formula(
    parts: Parts, interval: float, percent: float
) -> None:
    """Within three standard errors: the count of failures is what scatters."""
    failures = 12_000 if interval > 1000 else 1_500
    work = failures * _M
    ran = simulate(parts, exponential_gaps(_M, 3), interval_s=interval, work_s=work)
    expected = goodput(parts, interval, _M)
    error = (1 - expected) / math.sqrt(ran.failures)
    assert ran.goodput == pytest.approx(expected, abs=3 * error + 1e-3)


def test_time_is_accounted_for() -> None:
    parts = Parts(stall_s=2, write_s=3, detect_s=5, restart_s=11)
    ran = simulate(parts, [25.0, 4.0], interval_s=10, work_s=40)
    # Life 1: 10 work, 2 stall (durable at 15), 10 work, 2 stall to 24; killed at 25: the save at 20
    # is durable at 27, too late: 11 lost. Life 2 from 10, killed at 14: 4 lost. Life 3: 30 work,
    # saves at 20 and 30 (the one at 40 is the end).
    assert (ran.failures, ran.redone_s) == (2, 11 + 4)
    assert ran.stalled_s == 2 * 2 + 2 * 2
    assert ran.wall_s == pytest.approx(25 + 16 + 4 + 16 + 30 + 4)


def test_a_run_without_failures_loses_only_its_stalls() -> None:
    parts = Parts(stall_s=1, detect_s=9, restart_s=9)
    ran = simulate(parts, [], interval_s=10, work_s=100)
    assert (ran.failures, ran.stalled_s, ran.wall_s) == (0, 9, 109)


@pytest.mark.parametrize("delta", [1.0, 10.0, 60.0])
def test_the_best_interval_is_the_best(delta: float) -> None:
    parts = Parts(stall_s=delta, write_s=3, detect_s=7, restart_s=100)
    tau = best_interval(delta, _M)
    assert tau == pytest.approx(daly(delta, _M), rel=2e-3)
    assert tau == pytest.approx(young(delta, _M), rel=0.05)
    best = goodput(parts, tau, _M)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert goodput(parts, factor * tau, _M) < best


def test_published_intervals() -> None:
    """BLOOM: 40 s synchronous saves, one failure a week."""
    assert young(40, 7 * 86_400) == pytest.approx(6_956, abs=1)
    assert round(young(60, _M)) == 1156
    assert round(best_interval(60, _M)) == round(daly(60, _M)) == 1116


def test_a_stall_longer_than_failures_are_apart_has_an_answer() -> None:
    assert daly(100.0, 40.0) == 40.0
    assert 0 < best_interval(100.0, 40.0) < 40.0
