"""Losses as sums over terms, against PyTorch's own and against plain arithmetic in fp64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from trainer.batch import IGNORED
from trainer.objectives.cross_entropy import (
    class_loss_sum,
    multi_label_loss_sum,
    regression_loss_sum,
    span_loss_sum,
    token_loss_sum,
)
from trainer.objectives.next_token import next_token_loss_sum
from trainer.objectives.preference import (
    dpo_loss_sum,
    orpo_loss_sum,
    reward_loss_sum,
    sums_by_example,
)
from trainer.objectives.r_drop import r_drop_loss_sum

ONES, ZEROS = torch.ones(6), torch.zeros(6)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return made.requires_grad_()


def labels_of(*shape: int, classes: int, ignored: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    labels = torch.randint(classes, shape, generator=generator)
    return labels.masked_fill(torch.rand(shape, generator=generator) < ignored, IGNORED)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tokens_are_pytorchs_cross_entropy(smoothing: float) -> None:
    logits, labels = drawn(3, 5, 11), labels_of(3, 5, classes=11)
    ours = token_loss_sum(logits, labels, label_smoothing=smoothing)
    theirs = F.cross_entropy(
        logits.double().flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    assert ours.dtype == torch.float64
    assert ours.item() == pytest.approx(theirs.item(), rel=2e-7)
    mine, reference = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
    torch.testing.assert_close(mine, reference, rtol=1e-5, atol=1e-6)


def test_without_extras_tokens_are_the_pretraining_loss() -> None:
    logits, labels = drawn(3, 5, 11), labels_of(3, 5, classes=11)
    log_probs = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    expected = next_token_loss_sum(log_probs, labels)
    assert token_loss_sum(logits, labels).item() == pytest.approx(expected.item(), rel=2e-7)


def test_z_loss_and_weights_by_hand() -> None:
    logits = torch.tensor([[[0.0, 0.0], [3.0, 1.0]]])
    labels = torch.tensor([[0, 1]])
    log_z = [torch.tensor(2.0).log(), torch.tensor([3.0, 1.0]).exp().sum().log()]
    first, second = log_z[0] + 0.1 * log_z[0] ** 2, log_z[1] - 1 + 0.1 * log_z[1] ** 2
    weights = torch.tensor([[0.5, 2.0]])
    ours = token_loss_sum(logits, labels, weights_RT=weights, z_loss=0.1)
    assert ours.item() == pytest.approx(float(0.5 * first + 2.0 * second), rel=1e-6)


def test_examples_are_pytorchs_losses_and_padding_counts_for_nothing() -> None:
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    real = weights > 0
    logits, targets = drawn(6, 4), drawn(6, 4, seed=1).detach()
    classes = torch.tensor([0, 3, IGNORED, 2, 2, IGNORED])
    binary = (targets > 0).float()
    pairs = [
        (class_loss_sum(logits, classes, weights_E=weights),
         F.cross_entropy(logits[real].double(), classes[real])),
        (multi_label_loss_sum(logits, binary, weights_E=weights),
         F.binary_cross_entropy_with_logits(logits[real].double(), binary[real].double())),
        (regression_loss_sum(logits, targets, weights_E=weights),
         F.mse_loss(logits[real].double(), targets[real].double())),
    ]  # fmt: skip
    for ours, theirs in pairs:
        assert ours.item() / 4 == pytest.approx(theirs.item(), rel=2e-7)


def test_weights_count_an_example_as_often() -> None:
    logits, classes = drawn(2, 4), torch.tensor([1, 3])
    ours = class_loss_sum(logits, classes, weights_E=torch.tensor([2.0, 0.5]), label_smoothing=0.1)
    each = F.cross_entropy(logits.double(), classes, reduction="none", label_smoothing=0.1)
    assert ours.item() == pytest.approx((2 * each[0] + 0.5 * each[1]).item(), rel=2e-7)


def test_spans_are_searched_in_their_own_example_only() -> None:
    starts, ends = drawn(2, 7), drawn(2, 7, seed=1)
    allowed = torch.zeros(2, 7, dtype=torch.bool)
    allowed[0, :4], allowed[1, 4:] = True, True
    places = torch.tensor([1, 5]), torch.tensor([3, 6])
    ours = span_loss_sum((starts, ends), places, weights_E=torch.ones(2), allowed_ET=allowed)
    expected = 0.0
    for logits, place in zip((starts, ends), places, strict=True):
        expected += F.cross_entropy(logits[0, :4].double(), place[0]).item() / 2
        expected += F.cross_entropy(logits[1, 4:].double(), place[1] - 4).item() / 2
    assert ours.item() == pytest.approx(expected, rel=2e-7)
    assert torch.autograd.grad(ours, starts)[0][~allowed].abs().max() == 0


def test_dpo_by_hand() -> None:
    """Eq. 7 in plain arithmetic, and ln 2 where model and reference agree."""
    chosen, rejected = torch.tensor([-5.0, -2.0]), torch.tensor([-6.0, -1.0])
    reference = {"reference_chosen_P": torch.tensor([-5.5, -2.0]),
                 "reference_rejected_P": torch.tensor([-5.0, -4.0])}  # fmt: skip
    ones = torch.ones(2)
    margins = torch.tensor([0.1 * (0.5 + 1.0), 0.1 * (0.0 - 3.0)], dtype=torch.float64)
    expected = -torch.log(1 / (1 + torch.exp(-margins)))
    ours = dpo_loss_sum(chosen, rejected, **reference, weights_P=ones)
    assert ours.item() == pytest.approx(expected.sum().item(), rel=1e-6)
    flipped = -torch.log(1 / (1 + torch.exp(margins)))
    smooth = dpo_loss_sum(chosen, rejected, **reference, weights_P=ones, label_smoothing=0.2)
    assert smooth.item() == pytest.approx((0.8 * expected + 0.2 * flipped).sum().item(), rel=1e-6)
    same = dpo_loss_sum(
        *(chosen, rejected), reference_chosen_P=chosen, reference_rejected_P=rejected,
        weights_P=torch.tensor([1.0, 0.0]),
    )  # fmt: skip
    assert same.item() == pytest.approx(0.6931471805599453)


def test_orpo_by_hand() -> None:
    chosen, rejected = torch.tensor([-2.0]), torch.tensor([-6.0])
    p, q = torch.tensor([-0.5, -2.0], dtype=torch.float64).exp()  # means over 4 and 3 tokens
    ratio = torch.log(p / (1 - p)) - torch.log(q / (1 - q))
    expected = 0.5 - 0.25 * torch.log(1 / (1 + torch.exp(-ratio)))
    ours = orpo_loss_sum(
        chosen, rejected, chosen_lengths_P=torch.tensor([4]), rejected_lengths_P=torch.tensor([3]),
        weights_P=torch.ones(1), lam=0.25,
    )  # fmt: skip
    assert ours.item() == pytest.approx(expected.item(), rel=1e-12)


def test_an_answer_that_is_certain_has_finite_odds_and_gradients() -> None:
    chosen = torch.tensor([0.0], requires_grad=True)
    loss = orpo_loss_sum(
        chosen, torch.tensor([-1e-20]), chosen_lengths_P=torch.tensor([4]),
        rejected_lengths_P=torch.tensor([0]), weights_P=torch.ones(1),
    )  # fmt: skip
    loss.backward()
    assert loss.isfinite()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_rewards_by_hand() -> None:
    chosen, rejected = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    ours = reward_loss_sum(
        chosen, rejected, weights_P=torch.ones(2), margin_P=torch.tensor([1.0, 0])
    )
    expected = torch.log1p(torch.exp(torch.tensor([-0.5, 4.0], dtype=torch.float64))).sum()
    assert ours.item() == pytest.approx(expected.item(), rel=1e-6)


def test_sums_by_example_find_packed_answers() -> None:
    values = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, float("nan")]], requires_grad=True)
    examples = torch.tensor([[0, 0, 2], [2, 1, -1]])
    sums = sums_by_example(values, examples, 3)
    assert sums.tolist() == [3.0, 16.0, 12.0]
    sums[2].backward()
    assert values.grad is not None
    assert values.grad.tolist() == [[0, 0, 1], [1, 0, 0]]


def test_r_drop_is_the_mean_of_both_divergences() -> None:
    first, second = drawn(6, 5), drawn(6, 5, seed=1)
    weights = torch.tensor([1.0, 1, 0, 1, 2, 1])
    p, q = (t.double().log_softmax(-1) for t in (first, second))
    each = sum(
        F.kl_div(a, b, reduction="none", log_target=True).sum(-1) for a, b in ((p, q), (q, p))
    )
    ours = r_drop_loss_sum(first, second, weights_N=weights)
    assert ours.item() == pytest.approx((each * weights / 2).sum().item(), rel=1e-6)
    assert r_drop_loss_sum(first, first, weights_N=ONES).item() == 0.0


CASES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "tokens": lambda x, w: token_loss_sum(
        x[None], labels_of(1, 6, classes=4, ignored=2.0), label_smoothing=0.1, z_loss=1e-4
    ),
    "classes": lambda x, w: class_loss_sum(x, torch.full((6,), IGNORED), weights_E=w),
    "multi-label": lambda x, w: multi_label_loss_sum(x, torch.full((6, 4), torch.nan), weights_E=w),
    "regression": lambda x, w: regression_loss_sum(x, torch.full((6, 4), torch.nan), weights_E=w),
    "spans": lambda x, w: span_loss_sum(
        (x, x), (torch.full((6,), -1),) * 2, weights_E=w, allowed_ET=torch.zeros(6, 4).bool()
    ),
    "dpo": lambda x, w: dpo_loss_sum(
        *x.T[:2], reference_chosen_P=w, reference_rejected_P=w, weights_P=w
    ),
    "orpo": lambda x, w: orpo_loss_sum(
        *x.T[:2], chosen_lengths_P=w, rejected_lengths_P=w, weights_P=w
    ),
    "rewards": lambda x, w: reward_loss_sum(*x.T[:2], weights_P=w),
    "r-drop": lambda x, w: r_drop_loss_sum(x, x.flip(0), weights_N=w),
}


@pytest.mark.parametrize("name", CASES)
def test_without_terms_the_loss_is_zero_and_so_is_its_gradient(name: str) -> None:
    logits = drawn(6, 4)
    loss = CASES[name](logits, ZEROS)
    assert loss.dtype == torch.float64
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, logits)
    assert torch.equal(gradient, torch.zeros_like(logits))


def test_a_long_sum_keeps_its_digits() -> None:
    """Added in fp32, 65,536 terms are right in seven digits at best."""
    logits = torch.zeros(1, 2**16, 2)
    labels = torch.zeros(1, 2**16, dtype=torch.long)
    each = torch.tensor(2.0).log().item()
    assert token_loss_sum(logits, labels).item() == pytest.approx(2**16 * each, rel=1e-12)
