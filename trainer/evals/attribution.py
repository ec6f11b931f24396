"""Which tokens of one example a score rests on: integrated gradients over its embeddings.

By captum (`pip install 'longhaul[explain]'`) where that is, by the few lines here where it is not.

Shapes: K points of the path, T positions, H embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch

Score = Callable[[torch.Tensor], torch.Tensor]  # embeddings (K, T, H) -> scores (K,)


@dataclass(frozen=True)
class Attribution:
    """`shares_T` add up to `difference`, but for `gap`: what the sum over the path leaves out."""

    shares_T: torch.Tensor  # fp64
    difference: float  # the example's score less the baseline's
    gap: float


def integrated_gradients(
    score: Score,
    embeddings_TH: torch.Tensor,
    *,
    baseline_TH: torch.Tensor,
    points: int = 64,
    at_once: int = 8,
) -> Attribution:
    """How much each token moves the score from the baseline's (zeros, or the mask's embeddings).

    The model must be in eval mode: the path is walked once, and dropout would be part of it. With
    one point this is gradient x input, halfway. More points make the gap smaller.
    Source: Sundararajan et al. 2017, eq. 1 and 3, with the midpoint rule.
    """
    way_TH = (embeddings_TH - baseline_TH).detach()
    halves = (torch.arange(points, device=way_TH.device) + 0.5) / points
    total_TH = torch.zeros_like(way_TH, dtype=torch.float64)
    for start in range(0, points, at_once):
        part_K = halves[start : start + at_once]
        inputs_KTH = (baseline_TH + part_K[:, None, None] * way_TH).detach().requires_grad_()
        (gradient_KTH,) = torch.autograd.grad(score(inputs_KTH).sum(), inputs_KTH)
        total_TH += gradient_KTH.double().sum(0)
    return _attributed(score, total_TH / points * way_TH.double(), embeddings_TH, baseline_TH)


def has_captum() -> bool:
    return find_spec("captum") is not None


def integrated_gradients_of_captum(
    score: Score,
    embeddings_TH: torch.Tensor,
    *,
    baseline_TH: torch.Tensor,
    points: int = 64,
    at_once: int = 8,
) -> Attribution:
    """The same by captum, with the same rule: which of them was used changes no more than rounding.

    Raises: ImportError where it is not installed.
    """
    from captum.attr import IntegratedGradients  # imports matplotlib

    found_1TH = IntegratedGradients(score, multiply_by_inputs=True).attribute(
        embeddings_TH[None],
        baselines=baseline_TH[None],
        n_steps=points,
        method="riemann_middle",
        internal_batch_size=at_once,
    )
    return _attributed(score, found_1TH[0].double(), embeddings_TH, baseline_TH)


def _attributed(
    score: Score, shares_TH: torch.Tensor, embeddings_TH: torch.Tensor, baseline_TH: torch.Tensor
) -> Attribution:
    shares_T = shares_TH.sum(-1)
    with torch.no_grad():
        ends = score(torch.stack([baseline_TH, embeddings_TH])).double()
    difference = float(ends[1] - ends[0])
    return Attribution(shares_T, difference, difference - float(shares_T.sum()))
