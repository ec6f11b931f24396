"""The head against F.cross_entropy on full logits, in value, gradient and memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from trainer.batch import IGNORED
from trainer.models.head import Head
from trainer.objectives.cross_entropy import token_loss_sum

_VOCAB, _WIDTH = 101, 16


class _Largest(TorchDispatchMode):
    """Notes the number of elements of the largest tensors that any operation makes."""

    elements = 0
    fp32_elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, tuple | list) else (result,):
            if isinstance(x, torch.Tensor):
                self.elements = max(self.elements, x.numel())
                if x.dtype == torch.float32:
                    self.fp32_elements = max(self.fp32_elements, x.numel())
        return result


def _case(
    dtype: torch.dtype = torch.float32, *, bias: bool = False, rows: int = 3
) -> tuple[torch.Tensor, torch.Tensor, list[nn.Parameter]]:
    torch.manual_seed(1)
    hidden = torch.randn(rows, 7, _WIDTH).to(dtype).requires_grad_()
    labels = torch.randint(_VOCAB, (rows, 7))
    labels[0, :3] = IGNORED
    labels[-1] = IGNORED
    shapes = [(_VOCAB, _WIDTH), *([(_VOCAB,)] if bias else [])]
    return hidden, labels, [nn.Parameter(torch.randn(s).to(dtype)) for s in shapes]


def _expected(
    hidden: torch.Tensor, labels: torch.Tensor, params: list[nn.Parameter], factors: torch.Tensor
) -> list[torch.Tensor]:
    """Log-probabilities and the gradients of their weighted sum, on full fp32 logits."""
    logits = F.linear(hidden, *params).float().flatten(0, 1)
    log_probs = -F.cross_entropy(logits, labels.flatten(), ignore_index=IGNORED, reduction="none")
    log_probs = log_probs.view_as(labels)
    return [log_probs, *torch.autograd.grad((log_probs * factors).sum(), [hidden, *params])]


def _got(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    params: list[nn.Parameter],
    factors: torch.Tensor,
    chunk: int,
) -> list[torch.Tensor]:
    log_probs = Head(*params, chunk_tokens=chunk)(hidden, labels)
    return [log_probs, *torch.autograd.grad((log_probs * factors).sum(), [hidden, *params])]


@pytest.mark.parametrize(
    ("chunk", "bias"), list(itertools.product([0, 1, 4, 20, 21, 1000], [0, 1]))
)
def test_any_chunk_size_gives_cross_entropy_and_its_gradients(chunk: int, bias: int) -> None:
    hidden, labels, params = _case(bias=bool(bias))
    factors = torch.randn(labels.shape)  # each token's own gradient from above
    want = _expected(hidden, labels, params, factors)
    for ours, theirs in zip(_got(hidden, labels, params, factors, chunk), want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("chunk", [0, 4])
def test_bf16_sums_in_fp32(chunk: int) -> None:
    hidden, labels, params = _case(torch.bfloat16)
    factors = torch.ones(labels.shape)
    exact = _expected(
        hidden.detach().float().requires_grad_(),
        labels,
        [nn.Parameter(p.detach().float()) for p in params],
        factors,
    )
    got = _got(hidden, labels, params, factors, chunk)
    assert got[0].dtype == torch.float32
    for ours, theirs in zip(got, exact, strict=True):
        # bf16 keeps 8 bits: logits of size 10 are off by 0.03 before any sum.
        torch.testing.assert_close(ours.float(), theirs, atol=0.1, rtol=0.02)


def test_under_autocast_chunks_compute_as_the_whole_does() -> None:
    hidden, labels, params = _case()
    factors = torch.ones(labels.shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole, chunked = (_got(hidden, labels, params, factors, c) for c in (0, 4))
    for a, b in zip(whole, chunked, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.02)
    torch.testing.assert_close(whole[0], chunked[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [0, 600])
def test_logits_are_widened_to_fp32_a_block_at_a_time(chunk: int) -> None:
    """2 M logits in bf16, kept or in chunks: never all of them, nor a chunk, in fp32; and blocks
    that do not divide the rows change nothing."""
    torch.manual_seed(1)
    vocab = 2048
    hidden = torch.randn(4, 250, _WIDTH).bfloat16().requires_grad_()
    labels, factors = torch.randint(vocab, (4, 250)), torch.randn(4, 250)
    weight = nn.Parameter(torch.randn(vocab, _WIDTH).bfloat16())
    with _Largest() as seen:
        got = _got(hidden, labels, [weight], factors, chunk)
    assert seen.fp32_elements <= 1 << 19
    want = _expected(hidden, labels, [weight], factors)
    torch.testing.assert_close(got[0], want[0], atol=2e-6, rtol=2e-6)
    for ours, theirs in zip(got[1:], want[1:], strict=True):
        torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.01)


def test_a_frozen_weight_gets_no_gradient() -> None:
    hidden, labels, (weight,) = _case()
    weight.requires_grad = False
    Head(weight, chunk_tokens=4)(hidden, labels).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


@pytest.mark.parametrize("chunk", [0, 4])
def test_rows_without_terms_give_zero_with_a_gradient_of_zero(chunk: int) -> None:
    hidden, labels, (weight,) = _case()
    loss = Head(weight, chunk_tokens=chunk)(hidden, torch.full_like(labels, IGNORED)).sum()
    loss.backward()
    assert loss.item() == 0.0
    assert weight.grad is not None
    assert weight.grad.abs().max() == 0.0


@pytest.mark.parametrize("chunk", [0, 4])
def test_scores_are_the_same_log_probabilities_and_the_first_choice(chunk: int) -> None:
    hidden, labels, params = _case()
    head = Head(*params, chunk_tokens=chunk)
    log_probs, correct = head(hidden, labels, with_correct=True)
    torch.testing.assert_close(log_probs, head(hidden, labels).detach())
    logits = head(hidden)
    assert torch.equal(correct, logits.argmax(-1) == labels)
    labels = logits.argmax(-1)
    assert head(hidden, labels, with_correct=True)[1].all()


def test_in_chunks_no_tensor_grows_with_rows_times_vocabulary() -> None:
    """Chunks of 10 tokens: nothing larger than the hidden states, the weight or a chunk's logits,
    forward or backward; whole logits are 20 times as many."""
    hidden, labels, params = _case(rows=30)
    factors = torch.ones(labels.shape)
    with _Largest() as chunked:
        _got(hidden, labels, params, factors, 10)
    assert chunked.elements == max(hidden.numel(), params[0].numel(), 10 * _VOCAB)
    with _Largest() as whole:
        _got(hidden, labels, params, factors, 0)
    assert whole.elements == 210 * _VOCAB


@pytest.mark.parametrize("chunk", [0, 4])
def test_smoothing_and_z_loss_are_those_of_the_plain_formula(chunk: int) -> None:
    """Against the sum over whole logits that autograd differentiates."""
    hidden, labels, params = _case(bias=True)
    logits = F.linear(hidden, *params)
    want = [-token_loss_sum(logits, labels, label_smoothing=0.1, z_loss=0.01).float()]
    want += torch.autograd.grad(want[0], [hidden, *params])
    head = Head(*params, chunk_tokens=chunk)
    got = [head(hidden, labels, label_smoothing=0.1, z_loss=0.01).sum()]
    got += torch.autograd.grad(got[0], [hidden, *params])
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=5e-6, rtol=5e-6)
