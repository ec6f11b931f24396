"""Schedules against formulas written down once more."""

from __future__ import annotations

import math

import pytest

from trainer.config.sections.training import Constant, Cosine, InverseSqrt, Linear, Wsd
from trainer.schedules import AnySchedule, learning_rate, warmup_steps

_PEAK = 3e-3


def _rate(section: AnySchedule, step: int, *, total: int = 100, tokens: int = 512) -> float:
    return learning_rate(section, _PEAK, total_steps=total, tokens_per_step=tokens)(step)


def _all(warmup: int) -> list[AnySchedule]:
    w = {"warmup_steps": warmup, "warmup_tokens": 0}
    return [
        Constant(kind="constant", **w),
        Linear(kind="linear", final_fraction=0.1, **w),
        Cosine(kind="cosine", final_fraction=0.1, **w),
        Wsd(kind="wsd", decay_fraction=0.2, final_fraction=0.0, **w),
        InverseSqrt(kind="inverse_sqrt", **w),
    ]


@pytest.mark.parametrize("section", _all(10), ids=lambda s: s.kind)
def test_warm_up_is_a_straight_line_from_zero_that_reaches_the_peak(section: AnySchedule) -> None:
    for step in range(1, 11):
        assert _rate(section, step) == pytest.approx(_PEAK * step / 10)


@pytest.mark.parametrize("section", _all(0), ids=lambda s: s.kind)
def test_without_warm_up_the_first_step_is_near_the_peak(section: AnySchedule) -> None:
    assert _PEAK * 0.98 <= _rate(section, 1) <= _PEAK


@pytest.mark.parametrize("warmup", [0, 10])
def test_after_warm_up_by_formula(warmup: int) -> None:
    constant, linear, cosine, wsd, inverse = _all(warmup)
    for step in range(warmup + 1, 101):
        progress = (step - warmup) / (100 - warmup)
        assert _rate(constant, step) == _PEAK
        assert _rate(linear, step) == pytest.approx(_PEAK * (1 - 0.9 * progress))
        wave = 0.1 + 0.45 * (1 + math.cos(math.pi * progress))
        assert _rate(cosine, step) == pytest.approx(_PEAK * wave)
        falling = 1.0 if step <= 80 else (100 - step) / 20
        assert _rate(wsd, step) == pytest.approx(_PEAK * falling, abs=1e-12)
        assert _rate(inverse, step) == pytest.approx(_PEAK * math.sqrt(max(warmup, 1) / step))


def test_the_last_step_has_the_final_fraction() -> None:
    _, linear, cosine, wsd, _ = _all(10)
    assert _rate(linear, 100) == pytest.approx(_PEAK * 0.1)
    assert _rate(cosine, 100) == pytest.approx(_PEAK * 0.1)
    assert _rate(wsd, 100) == pytest.approx(0.0)


def test_warm_up_in_tokens_is_whole_steps_rounded_up() -> None:
    section = Constant(kind="constant", warmup_steps=0, warmup_tokens=1025)
    assert warmup_steps(section, tokens_per_step=512) == 3
    assert _rate(section, 1) == pytest.approx(_PEAK / 3)
    assert _rate(section, 3) == _PEAK


@pytest.mark.parametrize("section", _all(100), ids=lambda s: s.kind)
def test_a_run_that_is_all_warm_up_divides_nothing_by_zero(section: AnySchedule) -> None:
    assert _rate(section, 100) == pytest.approx(_PEAK)
    assert _rate(section, 101) <= _PEAK
