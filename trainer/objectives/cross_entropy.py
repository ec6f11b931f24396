"""Cross-entropies as sums over terms, fp64: of tokens, of whole examples, of answer spans.

Terms of a loss of tokens are the labels that count (with weights: the sum of their weights); of
classes, values and spans the examples. Divided by them, the sums are Hugging Face's mean losses.
As in next_token.py, terms are fp32 and added up in fp64; without any term the sum is 0 and its
gradient is 0, not missing: every rank of ZeRO-3 must run the same backward.

Shapes: R rows, T positions, V vocabulary, E examples, C classes.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from trainer.batch import IGNORED


def token_loss_sum(
    logits_RTV: torch.Tensor,
    labels_RT: torch.Tensor,
    *,
    weights_RT: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> torch.Tensor:
    """The sum over labels that count of weight x (smoothed cross-entropy + z_loss x log(Z)^2).

    Smoothing puts `label_smoothing` evenly on all V classes, the right one too, as PyTorch does.
    Source: Szegedy et al. 2016, sec. 7 (smoothing); Chowdhery et al. 2022 (PaLM), sec. 5 (z-loss,
    with 1e-4).
    """
    logits_RTV = logits_RTV.float()
    counts_RT = labels_RT != IGNORED
    log_z_RT = torch.logsumexp(logits_RTV, dim=-1)
    picked = labels_RT.masked_fill(~counts_RT, 0)
    label_logit_RT = logits_RTV.gather(-1, picked[..., None])[..., 0]
    loss_RT = log_z_RT - label_logit_RT
    if label_smoothing:
        uniform_RT = log_z_RT - logits_RTV.mean(dim=-1)
        loss_RT = (1.0 - label_smoothing) * loss_RT + label_smoothing * uniform_RT
    if z_loss:
        loss_RT = loss_RT + z_loss * log_z_RT.square()
    if weights_RT is not None:
        loss_RT = loss_RT * weights_RT
    return loss_RT.masked_fill(~counts_RT, 0.0).sum(dtype=torch.float64)


def class_loss_sum(
    logits_EC: torch.Tensor,
    classes_E: torch.Tensor,
    *,
    weights_E: torch.Tensor,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """One class an example. Examples of weight 0 are padding, whatever their class says."""
    safe_E = classes_E.masked_fill(weights_E == 0, 0)
    loss_E = F.cross_entropy(
        logits_EC.float(), safe_E, reduction="none", label_smoothing=label_smoothing
    )
    return _weighted_sum(loss_E, weights_E)


def multi_label_loss_sum(
    logits_EC: torch.Tensor, targets_EC: torch.Tensor, *, weights_E: torch.Tensor
) -> torch.Tensor:
    """Any number of classes an example, 0 or 1 each; an example's loss is the mean over classes."""
    safe_EC = targets_EC.float().masked_fill(weights_E[:, None] == 0, 0.0)
    loss_EC = F.binary_cross_entropy_with_logits(logits_EC.float(), safe_EC, reduction="none")
    return _weighted_sum(loss_EC.mean(dim=-1), weights_E)


def regression_loss_sum(
    values_EC: torch.Tensor, targets_EC: torch.Tensor, *, weights_E: torch.Tensor
) -> torch.Tensor:
    """Squared errors; an example's loss is the mean over its C values."""
    safe_EC = targets_EC.float().masked_fill(weights_E[:, None] == 0, 0.0)
    return _weighted_sum((values_EC.float() - safe_EC).square().mean(-1), weights_E)


def span_loss_sum(
    logits_2ET: tuple[torch.Tensor, torch.Tensor],
    places_2E: tuple[torch.Tensor, torch.Tensor],
    *,
    weights_E: torch.Tensor,
    allowed_ET: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Extractive answers, (starts, ends) each: the mean of the two cross-entropies over positions.

    No answer is, by convention, the place of the first token. `allowed_ET`: the example's own
    positions where several share a row; logits elsewhere count for nothing. `label_smoothing` is
    spread evenly over those positions.
    Source: Devlin et al. 2019 (BERT), sec. 4.2 and 4.3.
    """
    losses = [
        _place_losses(logits_ET, places_E, weights_E, allowed_ET, smoothing=label_smoothing)
        for logits_ET, places_E in zip(logits_2ET, places_2E, strict=True)
    ]
    return _weighted_sum((losses[0] + losses[1]) / 2, weights_E)


def _place_losses(
    logits_ET: torch.Tensor,
    places_E: torch.Tensor,
    weights_E: torch.Tensor,
    allowed_ET: torch.Tensor | None,
    *,
    smoothing: float,
) -> torch.Tensor:
    logits_ET = logits_ET.float()
    if allowed_ET is not None:
        # Not -inf: an example that is padding has no position at all, and NaN would spread.
        logits_ET = logits_ET.masked_fill(~allowed_ET, torch.finfo(torch.float32).min)
    safe_E = places_E.masked_fill(weights_E == 0, 0)
    loss_E = F.cross_entropy(logits_ET, safe_E, reduction="none")
    if not smoothing:
        return loss_E
    # PyTorch's own smoothing would count the places that are not the example's.
    own_ET = torch.ones_like(logits_ET, dtype=torch.bool) if allowed_ET is None else allowed_ET
    nats_ET = -torch.log_softmax(logits_ET, -1).masked_fill(~own_ET, 0.0)
    even_E = nats_ET.sum(-1) / own_ET.sum(-1).clamp(min=1)
    return torch.lerp(loss_E, even_E, smoothing)


def _weighted_sum(loss_E: torch.Tensor, weights_E: torch.Tensor) -> torch.Tensor:
    weighted_E = loss_E * weights_E.to(loss_E.dtype)
    return weighted_E.masked_fill(weights_E == 0, 0.0).sum(dtype=torch.float64)
