"""Small changes of embeddings that make the loss larger, to be trained against: FGM, PGD, FreeLB.

Each function takes embeddings' perturbation and its gradient and returns the next one. Who computes
gradients, and how often, is the task's business; nothing here touches a model.

One example is a row, or a part of one where `examples_RT` says so: norms are per example, so that
neither padding nor neighbours of a packed row count, and the result does not depend on how rows are
put together.

Shapes: R rows, T positions, H embedding size, E examples.
"""

from __future__ import annotations

import math

import torch

from trainer.dist.draws import Draws
from trainer.objectives.preference import sums_by_example

_TINY = 1e-30  # an example without gradient is left where it is


def fgm(gradient_RTH: torch.Tensor, examples_RT: torch.Tensor, *, epsilon: float) -> torch.Tensor:
    """The one step of length `epsilon` along each example's gradient. `examples_RT`: -1 is none.

    Source: Miyato et al. 2017, "Adversarial training methods for semi-supervised text
    classification", sec. 3.
    """
    return epsilon * _normalised(gradient_RTH, examples_RT)


def pgd(
    delta_RTH: torch.Tensor,
    gradient_RTH: torch.Tensor,
    examples_RT: torch.Tensor,
    *,
    alpha: float,
    epsilon: float,
) -> torch.Tensor:
    """A step of length `alpha`, and back onto the ball of radius `epsilon` where it left it.

    Source: Madry et al. 2018, sec. 2.1, with the L2 ball, as Zhu et al. 2020 (FreeLB), sec. 3.1.
    """
    return projected(delta_RTH + alpha * _normalised(gradient_RTH, examples_RT), examples_RT,
                     epsilon=epsilon)  # fmt: skip


def freelb_start(
    examples_RT: torch.Tensor, *, width: int, radius: float, seed: int, step: int, first: int
) -> torch.Tensor:
    """Where FreeLB starts: uniform noise over -1..1, times radius / sqrt(tokens x width).

    A pure function of (seed, step, number of the example): `first` is the global number of the
    micro-batch's example 0. After this each step is `pgd`, and gradients of the parameters of all
    steps are added up, a K-th each (the paper's algorithm 1).
    Source: Zhu et al. 2020 (FreeLB), sec. 3.2, algorithm 1.
    """
    noise_RTH = torch.zeros(*examples_RT.shape, width)
    for example in range(int(examples_RT.max()) + 1):
        mine_RT = examples_RT == example
        tokens = int(mine_RT.sum())
        if tokens:
            drawn = Draws("freelb", seed, step, first + example).uniforms(tokens * width)
            scaled = (2.0 * torch.from_numpy(drawn) - 1.0) * radius / math.sqrt(tokens * width)
            noise_RTH[mine_RT.cpu()] = scaled.float().view(tokens, width)
    return noise_RTH.to(examples_RT.device)


def projected(
    delta_RTH: torch.Tensor, examples_RT: torch.Tensor, *, epsilon: float
) -> torch.Tensor:
    """Perturbations longer than `epsilon` are shortened to it."""
    shrunk_RT1 = (epsilon / _norms(delta_RTH, examples_RT)).clamp(max=1.0)
    return delta_RTH * shrunk_RT1


def _normalised(gradient_RTH: torch.Tensor, examples_RT: torch.Tensor) -> torch.Tensor:
    mine_RT1 = (examples_RT >= 0)[..., None]
    return (gradient_RTH / _norms(gradient_RTH, examples_RT)).masked_fill(~mine_RT1, 0.0)


def _norms(values_RTH: torch.Tensor, examples_RT: torch.Tensor) -> torch.Tensor:
    """At each position the L2 norm of its example, (R, T, 1)."""
    squares_RT = values_RTH.double().square().sum(-1)
    count = int(examples_RT.max()) + 1 if examples_RT.numel() else 0
    norms_E = sums_by_example(squares_RT, examples_RT, max(count, 1)).sqrt().clamp(min=_TINY)
    return norms_E[examples_RT.clamp(min=0)][..., None].to(values_RTH.dtype)
