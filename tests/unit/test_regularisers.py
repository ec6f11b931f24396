"""Perturbations, noise and averages, against a few plain lines of PyTorch."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.models.mixout import mixout
from trainer.objectives.adversarial import fgm, freelb_start, pgd, projected
from trainer.objectives.neftune import neftune_noise
from trainer.objectives.weight_average import averaged_, warmed_decay

# Two rows: examples 0 and 1 share the first, 2 has the second, which ends in padding.
EXAMPLES = torch.tensor([[0, 0, 1, 1, 1], [2, 2, -1, -1, -1]])


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fgm_steps_along_each_examples_gradient() -> None:
    gradient = drawn(2, 5, 4)
    delta = fgm(gradient, EXAMPLES, epsilon=0.3)
    for example in range(3):
        mine = example == EXAMPLES
        expected = 0.3 * gradient[mine] / gradient[mine].norm()
        torch.testing.assert_close(delta[mine], expected, rtol=1e-6, atol=0)
    assert delta[EXAMPLES < 0].abs().max() == 0


def test_three_steps_of_pgd_are_the_plain_loop() -> None:
    """A loss of its own an example, in the textbook's three lines, single rows."""
    embeddings, target = drawn(2, 5, 4), drawn(2, 5, 4, seed=1)

    def loss(inputs: torch.Tensor) -> torch.Tensor:
        return ((inputs - target) ** 3).sin().sum()

    def gradient_at(inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.detach().requires_grad_()
        return torch.autograd.grad(loss(inputs), inputs)[0]

    ours = torch.zeros(2, 5, 4)
    for _ in range(3):
        gradient = gradient_at(embeddings + ours)
        ours = pgd(ours, gradient, EXAMPLES, alpha=0.2, epsilon=0.45)
    for example in range(3):
        mine = example == EXAMPLES
        delta = torch.zeros_like(embeddings[mine])
        for _ in range(3):
            point = embeddings.clone()
            point[mine] += delta
            gradient = gradient_at(point)[mine]
            delta = delta + 0.2 * gradient / gradient.norm()
            if delta.norm() > 0.45:
                delta = 0.45 * delta / delta.norm()
        torch.testing.assert_close(ours[mine], delta, rtol=1e-5, atol=1e-6)
        assert ours[mine].norm() <= 0.45 + 1e-6


def test_perturbations_do_not_depend_on_neighbours() -> None:
    gradient = drawn(2, 5, 4)
    packed = fgm(gradient, EXAMPLES, epsilon=1.0)
    alone = fgm(gradient[:1, :2], torch.zeros(1, 2, dtype=torch.long), epsilon=1.0)
    assert torch.equal(packed[:1, :2], alone)


def test_an_example_without_gradient_stays_where_it_is() -> None:
    delta = fgm(torch.zeros(2, 5, 4), EXAMPLES, epsilon=1.0)
    assert torch.equal(delta, torch.zeros(2, 5, 4))
    none = torch.full((1, 2), -1)
    assert torch.equal(fgm(drawn(1, 2, 3), none, epsilon=1.0), torch.zeros(1, 2, 3))


def test_only_what_left_the_ball_comes_back() -> None:
    delta = torch.zeros(2, 5, 4)
    delta[0, 0, 0], delta[0, 2, 1] = 0.1, 5.0
    back = projected(delta, EXAMPLES, epsilon=1.0)
    assert back[0, 0, 0] == delta[0, 0, 0]
    assert back[0, 2, 1] == 1.0


def test_freelb_starts_the_same_wherever_an_example_lies() -> None:
    settings = {"width": 16, "radius": 0.7, "seed": 1, "step": 2}
    packed = freelb_start(EXAMPLES, first=40, **settings)
    alone = freelb_start(torch.zeros(1, 3, dtype=torch.long), first=41, **settings)
    assert torch.equal(packed[0, 2:5], alone[0])
    assert packed[EXAMPLES < 0].abs().max() == 0
    for example, tokens in enumerate((2, 3, 2)):
        mine = packed[example == EXAMPLES]
        assert 0.8 < mine.abs().max() * math.sqrt(tokens * 16) / 0.7 <= 1.0
        assert mine.norm() < 0.7
    other = freelb_start(EXAMPLES, first=40, **(settings | {"step": 3}))
    assert not torch.equal(packed, other)


def test_noise_is_uniform_and_a_function_of_seed_step_and_row() -> None:
    def noise(length: int, positions: int, row: int, step: int = 7) -> torch.Tensor:
        return neftune_noise(
            [length], shape_TH=(positions, 64), alpha=5.0, seed=3, step=step, rows=[row]
        )[0]

    made, bound = noise(100, 128, 5), 5.0 / math.sqrt(100 * 64)
    assert torch.equal(made[:100], noise(100, 100, 5))  # however far the batch is padded
    assert not torch.equal(made, noise(100, 128, 6))
    assert not torch.equal(made, noise(100, 128, 5, step=8))
    assert made[100:].abs().max() == 0
    assert 0.99 * bound < made.abs().max() <= bound
    assert made[:100].mean().abs() < 0.03 * bound  # four sigma
    assert made[:100].var().item() == pytest.approx(bound**2 / 3, rel=0.05)
    two = neftune_noise([3, 0], shape_TH=(4, 2), alpha=1.0, seed=0, step=0, rows=[1])
    assert two[1].abs().max() == 0  # a row that no sample stands behind


def test_an_average_of_shards_is_the_shard_of_the_average() -> None:
    weights = [drawn(10, seed=seed) for seed in range(4)]
    whole = weights[0].clone()
    shards = [weights[0][:3].clone(), weights[0][3:].clone()]
    expected = weights[0].double()
    for one in weights[1:]:
        averaged_(whole, one.bfloat16(), decay=0.9)
        averaged_(shards[0], one[:3].bfloat16(), decay=0.9)
        averaged_(shards[1], one[3:].bfloat16(), decay=0.9)
        expected = 0.9 * expected + 0.1 * one.bfloat16().double()
    assert torch.equal(whole, torch.cat(shards))
    torch.testing.assert_close(whole.double(), expected, rtol=1e-6, atol=1e-6)
    assert [warmed_decay(step, 0.99) for step in (1, 8, 10_000)] == [2 / 11, 0.5, 0.99]


def test_mixout_keeps_the_mean() -> None:
    weights, pretrained = torch.full((20_000,), 3.0), torch.ones(20_000)
    mask = torch.rand(20_000, generator=torch.Generator().manual_seed(0)) < 0.25
    mixed = mixout(weights, pretrained, keep_pretrained=mask, rate=0.25)
    assert mixed.mean().item() == pytest.approx(3.0, abs=0.03)
    assert mixed[mask].unique().tolist() == [1.0]  # as pretrained
    assert mixed[~mask].unique().item() == pytest.approx((3.0 - 0.25) / 0.75)
