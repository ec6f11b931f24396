"""Rates that fall with depth: what a layer is, and a step against groups written by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.helpers.configs import config
from tests.unit.test_optim_groups import _adamw, _muon
from trainer.engine.base import set_rates
from trainer.errors import ConfigError
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.optim.layers import Layers, depths
from trainer.optim.optimizers import make_optimizer

SHAPES = {
    "bert.embeddings.word_embeddings.weight": (11, 4),
    "bert.embeddings.LayerNorm.bias": (4,),
    "bert.encoder.layer.0.output.dense.weight": (4, 4),
    "bert.encoder.layer.0.output.dense.bias": (4,),
    "bert.encoder.layer.1.output.dense.weight": (4, 4),
    "bert.pooler.dense.weight": (4, 4),
    "classifier.bias": (3,),
}
DEPTHS = [0, 0, 1, 1, 2, 3, 3]


def named() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [(n, nn.Parameter(torch.randn(s))) for n, s in SHAPES.items()]


def test_depth_is_by_name_and_place() -> None:
    assert list(depths(SHAPES).values()) == DEPTHS


@pytest.mark.parametrize(
    ("choice", "head"),
    [
        ("model=llama_debug", None),
        ("model=gpt2", None),
        ("model=pythia_160m", None),
        ("model=encoder_debug", HeadSpec("spans")),
        ("model=distilbert_base", HeadSpec("tokens", ("a", "b"))),
        ("model=modernbert_base", HeadSpec("mlm")),
    ],
)
def test_every_family_has_embeddings_layers_and_what_follows(
    choice: str, head: HeadSpec | None
) -> None:
    section = config(choice).model
    model = build_model(section, vocab_size=60_000, dtype=torch.float32, head=head)
    found = depths(name for name, _ in model.named_parameters())
    num_layers = getattr(section, "num_hidden_layers", 0)
    assert sorted(set(found.values())) == list(range(num_layers + 2))
    embeddings = [name for name, depth in found.items() if depth == 0]
    assert embeddings
    assert all("emb" in n or "wte" in n or "wpe" in n for n in embeddings)


def test_a_step_is_that_of_groups_written_by_hand() -> None:
    ours, theirs = named(), named()
    made = make_optimizer(_adamw(), ours, layers=Layers(0.5))
    by_hand = torch.optim.AdamW(
        [
            {
                "params": [p],
                "lr": 0.1 * 0.5 ** (3 - depth),
                "weight_decay": 0.5 if p.dim() == 2 else 0.0,
            }
            for (_, p), depth in zip(theirs, DEPTHS, strict=True)
        ],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for step in range(3):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a.grad = torch.sin(a.detach() + step)
            b.grad = torch.sin(b.detach() + step)
        for group in made.param_groups:  # as every engine does
            group["lr"] = 0.1 * group["lr_scale"]
        made.step()
        by_hand.step()
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_without_a_decay_groups_stay_as_they_were() -> None:
    assert [g["name"] for g in make_optimizer(_adamw(), named()).param_groups] == [
        "decay",
        "no_decay",
    ]


def test_muon_keeps_its_own_scale_beside_it() -> None:
    scales = {
        g["name"]: g["lr_scale"]
        for g in make_optimizer(_muon(), named(), layers=Layers(0.5)).param_groups
    }
    assert scales["muon.1"] == 0.25
    assert scales["decay.0"] == 0.25 * 0.5**3
    assert scales["no_decay.3"] == 0.25


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["encoder.block.0.a", "encoder.block.1.a", "decoder.block.0.a"], "two stacks of layers"),
        (["weight", "bias"], "names no layers"),
    ],
)
def test_where_there_is_no_one_depth_it_is_refused(names: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        depths(names)


def test_a_layer_moves_from_its_step_on_and_not_by_a_bit_before() -> None:
    """Against AdamW with a group a parameter, whose rates are 0 until then."""
    ours, theirs = named(), named()
    made = make_optimizer(_adamw(), ours, layers=Layers(unfreeze_every=2, total_steps=9))
    by_hand = torch.optim.AdamW(
        [{"params": [p], "weight_decay": 0.5 if p.dim() == 2 else 0.0} for _, p in theirs],
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    start = {name: p.detach().clone() for name, p in ours}
    for step in range(1, 10):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a.grad = torch.sin(a.detach() + step)
            b.grad = torch.sin(b.detach() + step)
        set_rates(made, 0.1, number=step)
        for group, depth in zip(by_hand.param_groups, DEPTHS, strict=True):
            group["lr"] = 0.1 if step > 2 * (3 - depth) else 0.0
        made.step()
        by_hand.step()
        for (name, p), depth in zip(ours, DEPTHS, strict=True):
            assert torch.equal(p, start[name]) == (step <= 2 * (3 - depth))
    for (name, a), (_, b) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("kind", ["sgd", "muon"])
def test_other_optimizers_too_leave_closed_layers_alone(kind: str) -> None:
    ours = named()
    section = _muon() if kind == "muon" else config("optimizer=sgd").optimizer
    made = make_optimizer(section, ours, layers=Layers(unfreeze_every=2, total_steps=9))
    for _, p in ours:
        p.grad = torch.ones_like(p)
    start = [p.detach().clone() for _, p in ours]
    set_rates(made, 0.1, number=2)
    made.step()
    for (_, p), before, depth in zip(ours, start, DEPTHS, strict=True):
        assert torch.equal(p, before) == (depth < 3)


def test_a_run_that_ends_before_all_are_trained_is_refused() -> None:
    wanted = "trained from step 31 on, and the run has 30 steps(?s:.*)unfreeze_every=9"
    with pytest.raises(ConfigError, match=wanted):
        make_optimizer(_adamw(), named(), layers=Layers(unfreeze_every=10, total_steps=30))
