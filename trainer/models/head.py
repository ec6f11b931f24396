"""The output head: hidden states -> log-probabilities of the labels, in chunks of tokens.

It is a module that owns the weight (also a tied one), so that ZeRO-3 gathers the weight around its
forward and backward, and it stands where Hugging Face keeps `lm_head`: parameter names stay theirs.

Shapes: R rows, T positions, N = R x T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from trainer.batch import IGNORED


class Head(nn.Module):
    """`chunk_tokens`: logits that exist at a time; 0: all at once and kept for the backward."""

    def __init__(
        self, weight: nn.Parameter, bias: nn.Parameter | None = None, *, chunk_tokens: int
    ) -> None:
        super().__init__()
        self.weight = weight
        self.bias = bias
        self.chunk_tokens = chunk_tokens

    def forward(
        self,
        hidden_RTD: torch.Tensor,
        labels_RT: torch.Tensor | None = None,
        *,
        with_correct: bool = False,
    ) -> Any:
        """Log-probability of every label, fp32, 0 where it is IGNORED; without labels the logits.

        `with_correct` (for scoring, without gradient) returns a pair: beside them whether the label
        was the most likely token, bool.

        Shapes: (R, T, D), (R, T) -> (R, T); without labels (R, T, V) in the model's dtype.
        """
        if labels_RT is None:
            return F.linear(hidden_RTD, self.weight, self.bias)
        hidden_ND, labels_N = hidden_RTD.flatten(0, -2), labels_RT.flatten()
        if with_correct:
            log_probs_N, correct_N = self._scores(hidden_ND, labels_N)
            return log_probs_N.view_as(labels_RT), correct_N.view_as(labels_RT)
        if self.chunk_tokens == 0 or self.chunk_tokens >= len(labels_N):
            logits_NV = F.linear(hidden_ND, self.weight, self.bias)
            return _label_log_probs(logits_NV, labels_N).view_as(labels_RT)
        log_probs_N = _ChunkedLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden_ND, self.weight, self.bias, labels_N, self.chunk_tokens
        )
        return log_probs_N.view_as(labels_RT)

    @torch.no_grad()
    def _scores(
        self, hidden_ND: torch.Tensor, labels_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        log_probs, correct = [], []
        size = self.chunk_tokens or len(labels_N)
        for h_CD, y_C in zip(
            torch.split(hidden_ND, size), torch.split(labels_N, size), strict=True
        ):
            logits_CV = F.linear(h_CD, self.weight, self.bias)
            log_probs.append(_label_log_probs(logits_CV, y_C))
            correct.append(logits_CV.argmax(-1) == y_C)
        return torch.cat(log_probs), torch.cat(correct)


def _label_log_probs(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    losses_N = F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED, reduction="none")
    return -losses_N


class _ChunkedLogProbs(torch.autograd.Function):
    """Linear, softmax and choice of the label, with logits for one chunk at a time.

    Kept for the backward: the inputs and one number a token (the log of the softmax's sum). The
    backward computes each chunk's logits again and turns them, in place, into their gradient. A
    checkpointed chunk would do the same and hold three fp32 copies of the logits while it does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk_tokens: int,
    ) -> torch.Tensor:
        ctx.compute_dtype = _compute_dtype(hidden_ND)
        ctx.chunk_tokens = chunk_tokens
        log_sum_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        log_probs_N = torch.empty_like(log_sum_N)
        logits_of = _Logits(weight_VD, bias_V, ctx.compute_dtype)
        for part in _parts(len(labels_N), chunk_tokens):
            logits_CV, y_C = logits_of(hidden_ND[part]), labels_N[part]
            log_sum_N[part] = logits_CV.logsumexp(-1)
            chosen_C = logits_CV.gather(-1, y_C.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            log_probs_N[part] = (chosen_C - log_sum_N[part]).masked_fill(y_C == IGNORED, 0.0)
        # The weight is a leaf, so autograd keeps the parameter itself: ZeRO-3 may empty it now and
        # gather it again before the backward.
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, log_sum_N)
        return log_probs_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden_ND, weight_VD, bias_V, labels_N, log_sum_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_N = grads[0].masked_fill(labels_N == IGNORED, 0.0)
        logits_of = _Logits(weight_VD, bias_V, ctx.compute_dtype)
        d_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        # fp32, because chunks add up here: rounding each sum to bf16 would lose small gradients.
        d_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        for part in _parts(len(labels_N), ctx.chunk_tokens):
            h_CD = hidden_ND[part].to(ctx.compute_dtype)
            d_CV = logits_of(h_CD).sub_(log_sum_N[part].unsqueeze(-1)).exp_()
            g_C1 = grad_N[part].unsqueeze(-1)
            d_CV.mul_(-g_C1).scatter_add_(-1, labels_N[part].clamp(min=0).unsqueeze(-1), g_C1)
            if d_bias is not None:
                d_bias += d_CV.sum(0)
            d_CV = d_CV.to(ctx.compute_dtype)
            if d_hidden is not None:
                d_hidden[part] = d_CV @ logits_of.weight_VD
            if d_weight is None:
                continue
            if ctx.compute_dtype == torch.float32:
                d_weight.addmm_(d_CV.T, h_CD)
            else:
                d_weight += d_CV.T @ h_CD
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_VD.dtype),
            None if d_bias is None else d_bias.to(bias_V.dtype),
            None,
            None,
        )


class _Logits:
    """Hidden states -> fp32 logits, computed in the dtype that autocast would take."""

    def __init__(
        self, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype
    ) -> None:
        self.weight_VD = weight_VD.to(dtype)
        self.bias_V = None if bias_V is None else bias_V.to(dtype)

    def __call__(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_CD.device.type, enabled=False):
            return F.linear(hidden_CD.to(self.weight_VD.dtype), self.weight_VD, self.bias_V).float()


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _parts(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]
