"""Mixout against the plain formula: what a step computes with, and what its gradient is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from tests.helpers.configs import config
from tests.helpers.task_cases import case_plan
from trainer.batch import ExampleBatch
from trainer.build import build_engine, starting_values
from trainer.dist.world import Alone
from trainer.errors import ConfigError
from trainer.models.build import build_model
from trainer.models.mixout import MixedLinear, Mixing, mix_out
from trainer.tasks.table import trained_task

GIVEN = ["regularize.mixout=0.4", "engine=plain", "model.dropout=0"]


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_the_formula_in_value_and_gradients(bias: bool) -> None:
    torch.manual_seed(5)
    plain, mixing = nn.Linear(6, 4, bias=bias), Mixing(0.3, seed=1)
    start = torch.randn(4, 6)
    layer = MixedLinear(plain, mixing, name="a")
    layer.starting_weight.data.copy_(start)
    inputs, given = torch.randn(2, 3, 6, requires_grad=True), torch.randn(2, 3, 4)
    mixing.step = 7
    wanted = [inputs, *plain.parameters()]
    ours = torch.autograd.grad((layer(inputs) * given).sum(), wanted)
    mask = mixing.mask("a", start)
    # Lee et al. 2020, definition 1: the mean of what is computed with is the weight itself
    mixed = (torch.where(mask, start, plain.weight) - 0.3 * start) / 0.7
    expected = F.linear(inputs, mixed, plain.bias)
    torch.testing.assert_close(layer(inputs), expected)
    theirs = torch.autograd.grad((expected * given).sum(), wanted)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
    assert 0 < mask.sum() < mask.numel()
    layer.eval()
    torch.testing.assert_close(layer(inputs), plain(inputs))


def test_masks_follow_from_seed_step_and_name_alone() -> None:
    like = torch.empty(200, 300)

    def mask(seed: int, step: int, name: str) -> torch.Tensor:
        mixing = Mixing(0.3, seed)
        mixing.step = step
        torch.manual_seed(step + 17)  # whatever was drawn before
        return mixing.mask(name, like)

    first = mask(1, 2, "a")
    assert torch.equal(first, mask(1, 2, "a"))
    assert first.float().mean().item() == pytest.approx(0.3, abs=0.01)
    for other in (mask(2, 2, "a"), mask(1, 3, "a"), mask(1, 2, "b")):
        both = (first & other).float().mean().item()
        assert both == pytest.approx(0.09, abs=0.01)  # as of two that know nothing of each other


def test_a_model_mixes_its_layers_a_step_and_scores_without(tmp_path: Path) -> None:
    plan = case_plan(tmp_path, "classify", GIVEN)
    engine = build_engine(plan, Alone())
    engine.load(starting_values(plan, engine), step=0)
    model, task = engine.model, trained_task(plan)
    mixed = {n: m for n, m in model.named_modules() if isinstance(m, MixedLinear)}
    assert len(mixed) == 2 * 6  # a layer's query, key, value, output and feed-forward
    for layer in mixed.values():
        assert torch.equal(layer.starting_weight, layer.weight)  # as the run begins
    with torch.no_grad():  # a model that has learnt something
        for layer in mixed.values():
            layer.weight.add_(torch.randn_like(layer.weight) * 0.3)
    batch = _batch(plan)
    model.train()
    plain_sum = task.score(model.eval(), batch)["loss"]
    model.train()
    mixed_sum = task.loss_sum(model, batch).item()
    step = batch.sample_indices[0] // plan.config.batch.global_batch_size
    weights = {}
    for name, layer in mixed.items():
        mixing = Mixing(0.4, plan.config.run.seed)
        mixing.step = step
        mask, start = mixing.mask(name, layer.weight), layer.starting_weight
        weights[f"{name}.weight"] = (torch.where(mask, start, layer.weight) - 0.4 * start) / 0.6
    logits = functional_call(model.eval(), weights, (batch.fields,), {"want": "sequence"})
    expected = F.cross_entropy(logits, batch.fields["classes_E"], reduction="sum").item()
    assert mixed_sum == pytest.approx(expected, rel=1e-5)
    assert abs(mixed_sum - plain_sum) > 1e-3 * plain_sum
    saved = [fragment.name for held in engine.fragments() for fragment in [held.fragment]]
    assert not any("starting" in name for name in saved)
    engine.close()


def _batch(plan: Any) -> ExampleBatch:
    from trainer.commands.rows import held_out_rows

    (batch, *_) = held_out_rows(plan, 4)
    assert isinstance(batch, ExampleBatch)
    return batch


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (("model/adapter=lora",), "model/adapter=lora leaves weights as the model started with"),
        (("model.compile=true",), "what it draws cannot be compiled"),
        (("engine=zero3_offload_cpu",), "it keeps a second copy of the weights, which are to lie"),
    ],
)
def test_what_mixout_cannot_stand_beside(given: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError) as seen:
        config("regularize.mixout=0.5", *given)
    (problem,) = seen.value.problems
    assert problem.what.startswith(what)


def test_a_family_without_such_matrices_is_refused() -> None:
    wanted = config("model=gpt2", "regularize.mixout=0.5", "precision=fp32")
    model = build_model(wanted.model, vocab_size=64, dtype=torch.float32)
    with pytest.raises(ConfigError, match="layers of gpt2 have no matrices"):
        mix_out(model, rate=0.5, seed=1)
