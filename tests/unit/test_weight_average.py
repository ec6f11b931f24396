"""The average of weights that an engine keeps, against the formula in three lines."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from tests.golden.test_config_golden import plan
from tests.helpers.configs import config
from trainer.config.sections.regularize import EmaSection
from trainer.config.sections.training import PrecisionSection
from trainer.engine.plain import PlainEngine
from trainer.errors import ConfigError
from trainer.records.fragment import AVERAGE, MASTER, Fragment

STEPS = 12


class Values:
    """A source: every parameter is filled with 1, 2, ...; moments and averages with 0."""

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        values = torch.arange(fragment.start, fragment.stop) + 1.0
        out.copy_(values if fragment.kind == MASTER else torch.zeros_like(out))


class Stored:
    def __init__(self, held: dict[tuple[str, str], torch.Tensor]) -> None:
        self._held = held

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        out.copy_(self._held[fragment.name, fragment.kind])


def engine(
    *, decay: float = 0.9, warmup: bool = False, kind: Literal["fp32", "bf16"] = "fp32"
) -> PlainEngine:
    return PlainEngine(
        lambda: nn.Linear(3, 2),
        lambda named: torch.optim.AdamW([p for _, p in named], lr=0.1),
        device=torch.device("cpu"),
        precision=PrecisionSection(kind=kind, accumulate_in="fp32"),
        max_grad_norm=1.0,
        average=EmaSection(decay=decay, warmup=warmup, evaluate=True),
    )


def step(made: PlainEngine, number: int, *, lose: bool = False) -> None:
    inputs = torch.full((1, 3), float(number), dtype=next(made.model.parameters()).dtype)
    made.accumulate(made.model(inputs).float().square().sum(), last=True)
    made.step(lr=0.1, apply_if=lambda norm: not lose)


def held(made: PlainEngine, kind: str) -> dict[str, torch.Tensor]:
    return {f.fragment.name: f.values.clone() for f in made.fragments() if f.fragment.kind == kind}


@pytest.mark.parametrize("warmup", [False, True])
def test_it_is_the_formula_over_updates_that_were_applied(warmup: bool) -> None:
    made = engine(warmup=warmup)
    made.load(Values(), step=0)
    expected = {name: values.double() for name, values in held(made, MASTER).items()}
    updates = 0
    for number in range(1, STEPS + 1):
        lose = number % 4 == 0
        step(made, number, lose=lose)
        if lose:
            continue
        updates += 1
        decay = min(0.9, (1 + updates) / (10 + updates)) if warmup else 0.9
        for name, values in held(made, MASTER).items():
            expected[name] = decay * expected[name] + (1 - decay) * values.double()
    for name, values in held(made, AVERAGE).items():
        torch.testing.assert_close(values.double(), expected[name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", ["fp32", "bf16"])
def test_the_model_computes_with_it_and_gets_its_own_weights_back(
    kind: Literal["fp32", "bf16"],
) -> None:
    made = engine(kind=kind)
    made.load(Values(), step=0)
    for number in range(1, 5):
        step(made, number)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters()}
    masters, averages = held(made, MASTER), held(made, AVERAGE)
    with made.averaged():
        for name, parameter in made.model.named_parameters():
            assert torch.equal(parameter.flatten(), averages[name].to(parameter.dtype))
            assert not torch.equal(parameter, before[name])
    for name, parameter in made.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert all(torch.equal(held(made, MASTER)[n], v) for n, v in masters.items())
    assert all(torch.equal(held(made, AVERAGE)[n], v) for n, v in averages.items())


def test_a_resume_goes_on_with_it() -> None:
    whole, begun, ended = engine(warmup=True), engine(warmup=True), engine(warmup=True)
    for made in (whole, begun):
        made.load(Values(), step=0)
    for number in range(1, STEPS + 1):
        step(whole, number)
        if number <= 5:
            step(begun, number)
    kept = {(f.fragment.name, f.fragment.kind): f.values.clone() for f in begun.fragments()}
    ended.load(Stored(kept), step=5)
    for number in range(6, STEPS + 1):
        step(ended, number)
    for kind in (MASTER, AVERAGE):
        for name, values in held(whole, kind).items():
            assert torch.equal(held(ended, kind)[name], values)


def test_without_a_decay_nothing_is_kept() -> None:
    made = engine(decay=0.0)
    assert {f.fragment.kind for f in made.fragments()} == {MASTER, "exp_avg", "exp_avg_sq"}
    with made.averaged():
        pass


def test_a_plan_counts_it() -> None:
    without, kept = plan(config()), plan(config("regularize.ema.decay=0.999"))
    assert kept.checkpoint_bytes - without.checkpoint_bytes == 4 * kept.num_parameters
    share = 4 * -(-kept.num_parameters // kept.world_size)
    more = kept.memory_per_rank.optimizer - without.memory_per_rank.optimizer
    assert abs(more - share) <= 4


def test_weights_on_a_disk_have_no_average() -> None:
    overrides = ["engine=zero3_offload_nvme", "engine.nvme_path=/local/scratch"]
    with pytest.raises(ConfigError, match="average of weights that lie on a disk"):
        config(*overrides, "regularize.ema.decay=0.9")
