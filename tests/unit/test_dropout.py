"""Dropout on CPUs: the rate that was asked for, apart from its neighbours, and sdpa's formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers.encoders import ENCODERS, THREE, examples, sharp_encoder, tiny_encoder
from trainer.dist.seeds import step_seeder
from trainer.models.dropout import ATTENTION, attend, dropped

ROW = torch.ones(1 << 18)


def _drawn(seed: int, rate: float) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropped(ROW, rate)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_every_place_is_dropped_at_the_rate_alone_and_beside_its_neighbour(rate: float) -> None:
    gone = (_drawn(1, rate) == 0).double()
    lanes = gone.view(-1, 4)  # the four numbers of one draw
    spread = (rate * (1 - rate) / len(lanes)) ** 0.5
    assert ((lanes.mean(0) - rate).abs() < 5 * spread).all(), lanes.mean(0)
    both = rate * rate
    for first, second in ((0, 1), (0, 3), (1, 2), (2, 3)):
        found = (lanes[:, first] * lanes[:, second]).mean()
        assert abs(found - both) < 5 * (both * (1 - both) / len(lanes)) ** 0.5


def test_what_stays_keeps_the_mean_and_the_gradient_goes_the_same_way() -> None:
    x = torch.full((3, 5, 7), 2.0, requires_grad=True)
    torch.manual_seed(3)
    out = dropped(x, 0.25)
    assert out.detach().unique().tolist() == pytest.approx([0.0, 2 / 0.75])
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad * 2, out.detach())


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    assert torch.equal(_drawn(5, 0.1), _drawn(5, 0.1))
    assert not torch.equal(_drawn(5, 0.1), _drawn(6, 0.1))


def test_all_or_nothing() -> None:
    assert torch.equal(_drawn(1, 0.0), ROW)
    assert not _drawn(1, 1.0).any()


def test_attention_is_the_formula_with_weights_dropped() -> None:
    torch.manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 6, 8)
    documents = torch.tensor([[1, 1, 1, 2, 2, 0], [1, 2, 2, 2, 2, 2]])
    mask = (documents[:, :, None] == documents[:, None]).unsqueeze(1)
    torch.manual_seed(9)
    how = {"dropout": 0.3, "scaling": 0.4, "otherwise": None}
    found, _ = attend(nn.Identity(), query, key, value, mask, **how)
    scores = (query @ key.transpose(-1, -2) * 0.4).masked_fill(~mask, float("-inf"))
    torch.manual_seed(9)
    expected = dropped(scores.softmax(-1), 0.3) @ value
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize("family", ENCODERS)
def test_models_train_by_it_and_say_without_it_what_they_said(family: str) -> None:
    """A rate that rounds to nothing: the path of training, and sdpa's own numbers."""
    rows = examples().packed
    seed = step_seeder(1)
    plain = sharp_encoder(tiny_encoder(family), THREE)
    expected = plain(rows, want="sequence")
    for rate in (1e-6, 0.3):
        model = sharp_encoder(tiny_encoder(family, dropout=rate), THREE)
        assert model.hf.config._attn_implementation == ATTENTION
        assert not [m for m in model.modules() if type(m) is nn.Dropout]
        torch.testing.assert_close(model(rows, want="sequence"), expected)
        for module in model.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = rate  # DistilBERT's head has one of its own
        seed(3, 16)
        first = model(rows, want="sequence")
        torch.rand(5)  # a run that went on from elsewhere: nothing of what was drawn is left
        seed(3, 16)
        assert torch.equal(model(rows, want="sequence"), first)
        seed(4, 16)
        if rate < 1e-5:
            torch.testing.assert_close(first, expected, atol=1e-5, rtol=1e-5)
        else:
            assert not torch.equal(model(rows, want="sequence"), first)
    assert plain.hf.config._attn_implementation == "sdpa"
