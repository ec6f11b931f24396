"""R-Drop: two passes with different dropout should say the same.

Shapes: N terms (examples, or positions of all rows), C classes.
"""

from __future__ import annotations

import torch


def r_drop_loss_sum(
    first_NC: torch.Tensor, second_NC: torch.Tensor, *, weights_N: torch.Tensor
) -> torch.Tensor:
    """The sum over terms of (KL(p1 || p2) + KL(p2 || p1)) / 2, scalar fp64.

    The objective adds it, times alpha, to the sum of both passes' own losses.
    Source: Liang et al. 2021 (R-Drop), eq. 2 and 4.
    """
    log_first_NC = first_NC.float().log_softmax(-1)
    log_second_NC = second_NC.float().log_softmax(-1)
    # KL(p || q) + KL(q || p) = sum (p - q)(log p - log q)
    both_N = ((log_first_NC.exp() - log_second_NC.exp()) * (log_first_NC - log_second_NC)).sum(-1)
    weighted_N = 0.5 * both_N * weights_N
    return weighted_N.masked_fill(weights_N == 0, 0.0).sum(dtype=torch.float64)
