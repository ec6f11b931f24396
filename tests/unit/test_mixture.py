"""Mixtures hold their weights, in every stretch and at any index."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.data.mixture import apportioned, mixture


@pytest.mark.parametrize(
    "weights", [(1.0,), (1.0, 1.0), (3.0, 1.0), (0.7, 0.2, 0.1), (1.0, 1e-3), (0.5, 0.25, 0.125)]
)
def test_a_period_holds_exactly_the_shares_and_every_stretch_nearly(
    weights: tuple[float, ...],
) -> None:
    mix = mixture(weights)
    share = np.array(weights) / sum(weights)
    total = 3 * mix.period
    source, _ = mix.locate(np.arange(total))
    assert np.bincount(source) / total == pytest.approx(share, abs=1e-12)
    for number, part in enumerate(share):
        taken = np.cumsum(source == number)
        ideal = part * np.arange(1, total + 1)
        assert np.abs(taken - ideal).max() <= len(weights)


def test_each_source_counts_its_own_samples_without_gaps() -> None:
    mix = mixture((0.7, 0.2, 0.1))
    source, local = mix.locate(np.arange(1000))
    for number in range(3):
        mine = local[source == number]
        assert mine.tolist() == list(range(len(mine)))


def test_a_trillionth_sample_needs_none_before_it() -> None:
    mix = mixture((2.0, 1.0))
    base = 10**12
    source, local = mix.locate(np.arange(base, base + 6))
    assert sorted(np.bincount(source)) == [2, 4]
    assert abs(int(local[source == 1][0]) - base // 3) <= 1


def test_weights_that_need_a_long_period_are_rounded_but_never_to_nothing() -> None:
    mix = mixture((0.123456789, 1e-9, 0.876543211))
    assert mix.counts_S.min() == 1
    assert mix.period <= 2**16
    assert mix.counts_S[0] / mix.period == pytest.approx(0.123456789, abs=1e-4)


def test_largest_remainders_get_the_rest() -> None:
    assert apportioned([0.5, 0.3, 0.2], total=4) == [2, 1, 1]
    assert apportioned([1, 1, 1], total=4) == [2, 1, 1]
    assert sum(apportioned([0.9, 0.05, 0.05], total=3)) == 3
