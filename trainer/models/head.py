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
from trainer.capacity.head import BLOCK_ELEMENTS


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
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Any:
        """Log-probability of every label, fp32, 0 where it is IGNORED; without labels the logits.

        `with_correct` (for scoring, without gradient) returns a pair: beside them whether the label
        was the most likely token, bool. `label_smoothing`: of each log-probability so much is the
        mean over all tokens (Szegedy et al. 2016, sec. 7; evenly on all V, as PyTorch does).
        `z_loss` x log(Z)^2 is taken off each (Chowdhery et al. 2022, sec. 5), Z the softmax's sum.

        Shapes: (R, T, D), (R, T) -> (R, T); without labels (R, T, V) in the model's dtype.
        """
        if labels_RT is None:
            return F.linear(hidden_RTD, self.weight, self.bias)
        hidden_ND, labels_N = hidden_RTD.flatten(0, -2), labels_RT.flatten()
        if with_correct:
            log_probs_N, correct_N = self._scores(hidden_ND, labels_N)
            return log_probs_N.view_as(labels_RT), correct_N.view_as(labels_RT)
        log_probs_N = _LogProbs.apply(  # type: ignore[no-untyped-call]
            hidden_ND,
            self.weight,
            self.bias,
            labels_N,
            self.chunk_tokens or len(labels_N),
            label_smoothing,
            z_loss,
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
            log_probs.append(_label_log_probs(logits_CV, y_C)[0])
            correct.append(logits_CV.argmax(-1) == y_C)
        return torch.cat(log_probs), torch.cat(correct)


class _LogProbs(torch.autograd.Function):
    """Linear, softmax and choice of the label, with logits for one chunk at a time.

    Kept for the backward: the inputs, one number a token (the log of the softmax's sum) and, of a
    single chunk, its logits in the dtype they were computed in. Of several chunks the backward
    computes the logits again, and turns them into their gradient in place.

    fp32 exists for a block of logits alone (`_blocks`). Autograd's way through F.cross_entropy
    makes four fp32 copies of all logits: an eighth of a small model's step on a CPU.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk_tokens: int,
        smoothing: float,
        z_loss: float,
    ) -> torch.Tensor:
        ctx.smoothing, ctx.z_loss = smoothing, z_loss
        ctx.compute_dtype = _compute_dtype(hidden_ND)
        ctx.chunk_tokens = chunk_tokens
        log_sum_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        log_probs_N = torch.empty_like(log_sum_N)
        logits_of = _Logits(weight_VD, bias_V, ctx.compute_dtype)
        logits_CV: torch.Tensor | None = None
        for part in _parts(len(labels_N), chunk_tokens):
            logits_CV = logits_of(hidden_ND[part])
            log_probs_N[part], log_sum_N[part] = _label_log_probs(
                logits_CV, labels_N[part], smoothing=smoothing, z_loss=z_loss
            )
        kept = logits_CV if chunk_tokens >= len(labels_N) else None
        # The weight is a leaf, so autograd keeps the parameter itself: ZeRO-3 may empty it now and
        # gather it again before the backward.
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, labels_N, log_sum_N, kept)
        return log_probs_N

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        hidden_ND, weight_VD, bias_V, labels_N, log_sum_N, kept = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        logits_of = _Logits(weight_VD, bias_V, ctx.compute_dtype)
        d_hidden = torch.empty_like(hidden_ND) if needs_hidden else None
        d_weight: torch.Tensor | None = None
        d_bias = torch.zeros_like(bias_V, dtype=torch.float32) if needs_bias else None
        for part in _parts(len(labels_N), ctx.chunk_tokens):
            h_CD = hidden_ND[part].to(ctx.compute_dtype)
            logits_CV = logits_of(h_CD) if kept is None else kept
            d_CV = torch.empty_like(kept) if kept is not None else logits_CV
            _logits_gradient(
                logits_CV,
                labels_N[part],
                log_sum_N[part],
                grads[0][part],
                out=d_CV,
                d_bias=d_bias,
                smoothing=ctx.smoothing,
                z_loss=ctx.z_loss,
            )
            if d_hidden is not None:
                d_hidden[part] = d_CV @ logits_of.weight_VD
            if needs_weight:
                d_weight = _added(d_weight, d_CV, h_CD, whole=kept is not None)
        return (
            d_hidden,
            None if d_weight is None else d_weight.to(weight_VD.dtype),
            None if d_bias is None else d_bias.to(bias_V.dtype),
            None,
            None,
            None,
            None,
        )


def _label_log_probs(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, *, smoothing: float = 0.0, z_loss: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of every label (0 where IGNORED) and log of the softmax's sum; (N,), fp32."""
    log_probs, log_sums = [], []
    for block in _blocks(logits_NV):
        y_B1 = labels_N[block].clamp(min=0).unsqueeze(-1)
        logits_BV = logits_NV[block].float()
        log_softmax_BV = torch.log_softmax(logits_BV, -1)
        chosen_B1 = log_softmax_BV.gather(-1, y_B1)
        log_sums.append(logits_BV.gather(-1, y_B1) - chosen_B1)
        if smoothing:
            chosen_B1 = torch.lerp(chosen_B1, log_softmax_BV.mean(-1, keepdim=True), smoothing)
        if z_loss:
            chosen_B1 = chosen_B1 - z_loss * log_sums[-1].square()
        log_probs.append(chosen_B1)
    log_probs_N, log_sums_N = torch.cat(log_probs).squeeze(-1), torch.cat(log_sums).squeeze(-1)
    return log_probs_N.masked_fill_(labels_N == IGNORED, 0.0), log_sums_N


def _logits_gradient(
    logits_CV: torch.Tensor,
    labels_C: torch.Tensor,
    log_sum_C: torch.Tensor,
    grad_C: torch.Tensor,
    *,
    out: torch.Tensor,
    d_bias: torch.Tensor | None,
    smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> None:
    """Fill `out`, which may be the logits themselves, with their gradient; add the bias's to its.

    Rounded once, from fp32, to the dtype of `out`.
    """
    grad_C1 = grad_C.masked_fill(labels_C == IGNORED, 0.0).unsqueeze(-1)
    for block in _blocks(logits_CV):
        g_B1, y_B1 = grad_C1[block], labels_C[block].clamp(min=0).unsqueeze(-1)
        d_BV = logits_CV[block].float() - log_sum_C[block].unsqueeze(-1)
        # of a label's logit the softmax's share, and of -z log(Z)^2: -2 z log(Z) x softmax
        heavier_B1 = 1 + 2 * z_loss * log_sum_C[block].unsqueeze(-1) if z_loss else 1.0
        d_BV.exp_().mul_(-g_B1 * heavier_B1)
        if smoothing:
            d_BV.add_(g_B1 * (smoothing / d_BV.shape[-1]))
        d_BV.scatter_add_(-1, y_B1, g_B1 * (1 - smoothing) if smoothing else g_B1)
        out[block] = d_BV
        if d_bias is not None:
            d_bias += d_BV.sum(0)


def _added(
    total_VD: torch.Tensor | None, d_CV: torch.Tensor, h_CD: torch.Tensor, *, whole: bool
) -> torch.Tensor:
    """`total` and this chunk's gradient of the weight. Chunks add up in fp32: rounding each sum to
    bf16 would lose small gradients."""
    if whole:
        return d_CV.T @ h_CD
    if total_VD is None:
        total_VD = d_CV.new_zeros((d_CV.shape[-1], h_CD.shape[-1]), dtype=torch.float32)
    if d_CV.dtype == torch.float32:
        return total_VD.addmm_(d_CV.T, h_CD)
    return total_VD.add_(d_CV.T @ h_CD)


class _Logits:
    """Hidden states -> logits, computed and given in the dtype that autocast would take."""

    def __init__(
        self, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, dtype: torch.dtype
    ) -> None:
        self.weight_VD = weight_VD.to(dtype)
        self.bias_V = None if bias_V is None else bias_V.to(dtype)

    def __call__(self, hidden_CD: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_CD.device.type, enabled=False):
            return F.linear(hidden_CD.to(self.weight_VD.dtype), self.weight_VD, self.bias_V)


def _compute_dtype(hidden: torch.Tensor) -> torch.dtype:
    if torch.is_autocast_enabled(hidden.device.type):
        return torch.get_autocast_dtype(hidden.device.type)
    return hidden.dtype


def _parts(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def _blocks(logits_NV: torch.Tensor) -> list[slice]:
    """Rows whose fp32 logits stay in a CPU's cache; elsewhere enough to keep the device busy."""
    elements = BLOCK_ELEMENTS["cpu" if logits_NV.device.type == "cpu" else "cuda"]
    return _parts(len(logits_NV), max(1, elements // logits_NV.shape[-1]))
