"""Next-token prediction.

Shapes: R rows, T positions.
"""

from __future__ import annotations

import torch

from trainer.batch import IGNORED


def next_token_loss_sum(
    log_probs_RT: torch.Tensor,
    labels_RT: torch.Tensor,
    *,
    weights_RT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Minus the sum of the log-probabilities of the labels that count, times their weights if there
    are any; scalar fp64.

    fp64, because thousands of fp32 terms added in fp32 lose the seventh digit: enough to hide
    whether two layouts agree. Terms and their gradients stay fp32.
    Without any such label the sum is 0 and its gradient is 0, not missing: every rank of ZeRO-3
    must run the same backward.
    """
    if weights_RT is not None:
        log_probs_RT = log_probs_RT * weights_RT
    return -log_probs_RT.masked_fill(labels_RT == IGNORED, 0.0).sum(dtype=torch.float64)


def correct_count(correct_RT: torch.Tensor, labels_RT: torch.Tensor) -> torch.Tensor:
    """How many labels that count were the model's first choice; scalar int64."""
    return (correct_RT & (labels_RT != IGNORED)).sum()
