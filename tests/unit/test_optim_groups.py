"""Which parameters decay, which ones Muon takes, and what the optimizers do with that."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trainer.config.sections.training import AdamW, Muon, Sgd
from trainer.optim.groups import decay_groups, muon_groups
from trainer.optim.muon import Muon as MuonOptimizer
from trainer.optim.muon import orthogonalized
from trainer.optim.optimizers import make_optimizer

_SHAPES = {
    "model.embed_tokens.weight": (11, 4),
    "model.layers.0.self_attn.q_proj.weight": (8, 4),
    "model.layers.0.self_attn.q_proj.bias": (8,),
    "model.layers.0.input_layernorm.weight": (4,),
    "model.norm.weight": (4,),
    "lm_head.weight": (11, 4),
}
_MATRICES = [
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "lm_head.weight",
]


def _named() -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [(n, nn.Parameter(torch.randn(s))) for n, s in _SHAPES.items()]


def _adamw() -> AdamW:
    return AdamW(
        kind="adamw",
        learning_rate=0.1,
        weight_decay=0.5,
        max_grad_norm=1.0,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
    )


def _muon() -> Muon:
    return Muon(
        kind="muon",
        learning_rate=0.1,
        weight_decay=0.5,
        max_grad_norm=1.0,
        momentum=0.9,
        adamw_learning_rate=0.025,
        beta1=0.9,
        beta2=0.95,
        eps=1e-8,
    )


def test_matrices_decay_and_vectors_do_not() -> None:
    decay, no_decay = decay_groups(_named(), weight_decay=0.5)
    assert [n for n, _ in decay.parameters] == _MATRICES
    assert decay.weight_decay == 0.5
    assert [n for n, _ in no_decay.parameters] == [n for n in _SHAPES if n not in _MATRICES]
    assert no_decay.weight_decay == 0.0


def test_a_parameter_partitioned_by_zero_3_counts_with_its_whole_shape() -> None:
    named = _named()
    for _, p in named:
        p.ds_shape = torch.Size(p.shape)  # type: ignore[attr-defined]
        p.data = torch.empty(0)
    decay, no_decay = decay_groups(named, weight_decay=0.5)
    assert (len(decay.parameters), len(no_decay.parameters)) == (3, 3)


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    named = _named()
    for name, p in named:
        p.requires_grad = name == "model.norm.weight"
    (only,) = decay_groups(named, weight_decay=0.5)
    assert [n for n, _ in only.parameters] == ["model.norm.weight"]


def test_muon_takes_the_matrices_of_layers_only() -> None:
    groups = {g.name: g for g in muon_groups(_named(), weight_decay=0.5, adamw_lr_scale=0.25)}
    assert [n for n, _ in groups["muon"].parameters] == ["model.layers.0.self_attn.q_proj.weight"]
    assert {n for n, _ in groups["decay"].parameters} == {
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    assert [groups[n].lr_scale for n in ("muon", "decay", "no_decay")] == [1.0, 0.25, 0.25]


def test_sgd_decay_is_decoupled_from_momentum() -> None:
    section = Sgd(kind="sgd", learning_rate=0.1, weight_decay=0.5, max_grad_norm=0, momentum=0.9)
    named = _named()
    start = {n: p.detach().clone() for n, p in named}
    optimizer = make_optimizer(section, named)
    for _ in range(3):
        for _, p in named:
            p.grad = torch.zeros_like(p)
        optimizer.step()
    for name, p in named:
        factor = (1 - 0.1 * 0.5) ** 3 if name in _MATRICES else 1.0
        torch.testing.assert_close(p.detach(), start[name] * factor)


def test_adamw_equals_torch_with_the_same_groups() -> None:
    ours, theirs = _named(), _named()
    optimizer = make_optimizer(_adamw(), ours)
    matrices = [p for n, p in theirs if n in _MATRICES]
    vectors = [p for n, p in theirs if n not in _MATRICES]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.5}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.95),
        eps=1e-8,
    )
    for _ in range(3):
        for (_, a), (_, b) in zip(ours, theirs, strict=True):
            a.grad = b.grad = torch.randn(a.shape)
        optimizer.step()
        reference.step()
    for (_, a), (_, b) in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_orthogonalized_keeps_singular_vectors_and_evens_singular_values() -> None:
    torch.manual_seed(0)
    for shape in ((8, 20), (20, 8), (8, 8)):
        matrix = torch.randn(shape)
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inner = u.T @ orthogonalized(matrix) @ vh.T
        assert inner.diagonal().min() > 0.3
        assert inner.diagonal().max() < 1.3
        assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


def test_muon_on_one_matrix_equals_torchs_and_the_rest_is_adamw() -> None:
    named, twins = _named(), dict(_named())
    optimizer = make_optimizer(_muon(), named)
    name = "model.layers.0.self_attn.q_proj.weight"
    theirs = torch.optim.Muon([twins[name]], lr=0.1, weight_decay=0.5, momentum=0.9)
    embed = "model.embed_tokens.weight"
    adamw = torch.optim.AdamW([twins[embed]], lr=0.025, betas=(0.9, 0.95), weight_decay=0.5)
    for _ in range(3):
        for n, p in named:
            p.grad = torch.randn(p.shape)
            twins[n].grad = p.grad.clone()
        optimizer.step()
        theirs.step()
        adamw.step()
    got = dict(named)
    # torch iterates in bf16; we do it in fp32 on the CPU: 0.02 after three steps of 0.1.
    torch.testing.assert_close(got[name], twins[name], atol=0.02, rtol=0)
    torch.testing.assert_close(got[embed], twins[embed])


def test_muons_moments_depend_on_the_group() -> None:
    groups = make_optimizer(_muon(), _named()).param_groups
    kinds = {g["name"]: MuonOptimizer.moment_names(g) for g in groups}
    assert kinds["muon"] == ("momentum_buffer",)
    assert kinds["decay"] == ("exp_avg", "exp_avg_sq")


@pytest.mark.parametrize("section", [_adamw(), _muon()], ids=lambda s: s.kind)
def test_groups_say_how_the_engines_rate_is_scaled(section: AdamW | Muon) -> None:
    for group in make_optimizer(section, _named()).param_groups:
        assert group["lr"] == pytest.approx(section.learning_rate * group["lr_scale"])
