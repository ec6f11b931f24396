"""Initial values: a pure function of (seed, name, index), however a tensor is cut."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from trainer.errors import ModelError
from trainer.models.init import InitialValues, Rule, standard_normal
from trainer.records.fragment import MASTER, Fragment

_RULES = {
    "a.weight": Rule("normal", 0.02),
    "b.weight": Rule("normal", 0.02),
    "norm.weight": Rule("ones"),
    "a.bias": Rule("zeros"),
}
_LENGTH = 100_003


def _read(name: str, start: int, stop: int, *, seed: int = 0, kind: str = MASTER) -> torch.Tensor:
    out = torch.full((stop - start,), torch.nan)
    InitialValues(_RULES, seed).read(Fragment(name, kind, (_LENGTH,), start, stop), out)
    return out


def test_values_do_not_depend_on_how_the_tensor_is_cut() -> None:
    whole = _read("a.weight", 0, _LENGTH)
    for cuts in ([1, 2, 16383, 16384, 16385, 40000], [33333, 66667], list(range(0, _LENGTH, 7919))):
        edges = [0, *(c for c in cuts if c), _LENGTH]
        pieces = [_read("a.weight", a, b) for a, b in itertools.pairwise(edges)]
        assert torch.equal(torch.cat(pieces), whole)


def test_a_range_far_into_a_huge_tensor_needs_nothing_before_it() -> None:
    start = 10**13
    first, later = (
        torch.cat(list(standard_normal(0, "huge", start + skip, start + 20_000))) for skip in (0, 5)
    )
    assert torch.equal(first[5:], later)


def test_values_are_normal_and_independent() -> None:
    x = torch.cat(list(standard_normal(1, "x", 0, 1_000_000))).double()
    assert abs(x.mean()) < 5e-3
    assert abs(x.std() - 1) < 3e-3
    assert abs((x**4).mean() - 3) < 0.03
    within = ((x.abs() < 1).double().mean(), (x.abs() < 2).double().mean())
    assert within[0] == pytest.approx(math.erf(1 / math.sqrt(2)), abs=2e-3)
    assert within[1] == pytest.approx(math.erf(2 / math.sqrt(2)), abs=1e-3)
    for lag in (1, 2, 8192, 16384):
        assert abs((x[lag:] * x[:-lag]).mean()) < 5e-3


def test_names_and_seeds_give_unrelated_values_and_the_same_ones_repeat() -> None:
    a = _read("a.weight", 0, 50_000)
    for other in (_read("b.weight", 0, 50_000), _read("a.weight", 0, 50_000, seed=1)):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.02
    assert torch.equal(a, _read("a.weight", 0, 50_000))
    assert a.std() == pytest.approx(0.02, rel=0.02)


def test_these_very_numbers_stay() -> None:
    """A change here changes every run's start: it needs a line under Numerics in the changelog."""
    got = torch.cat(list(standard_normal(20, "model.embed_tokens.weight", 16382, 16387)))
    assert got.tolist() == pytest.approx(_PINNED, abs=1e-6)


def test_norms_biases_and_moments() -> None:
    assert torch.equal(_read("norm.weight", 3, 9), torch.ones(6))
    assert torch.equal(_read("a.bias", 3, 9), torch.zeros(6))
    assert torch.equal(_read("a.weight", 3, 9, kind="exp_avg"), torch.zeros(6))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no initial values for c\.weight"):
        _read("c.weight", 0, 1)


_PINNED = [-1.0156305, 0.7755851, -0.0225259, -0.2668397, -1.6353556]
