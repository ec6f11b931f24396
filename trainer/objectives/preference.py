"""Learning from pairs of answers, one preferred: DPO, ORPO, reward models. Terms are pairs.

What an answer's log-probability is comes from `sums_by_example` over its tokens.

Shapes: R rows, T positions, E examples (answers), P pairs.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F


def sums_by_example(
    values_RT: torch.Tensor, examples_RT: torch.Tensor, num_examples: int
) -> torch.Tensor:
    """Values added up per example, fp64 (E,). `examples_RT` says whose each position is; -1: none.

    Log-probabilities of labels give an answer's own, ones its length.
    """
    mine_RT = examples_RT >= 0
    flat = values_RT.double().masked_fill(~mine_RT, 0.0).flatten()
    sums = torch.zeros(num_examples, dtype=torch.float64, device=values_RT.device)
    return sums.index_add(0, examples_RT.clamp(min=0).flatten(), flat)


def dpo_margins(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    *,
    reference_chosen_P: torch.Tensor,
    reference_rejected_P: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """How much more the model prefers the right answer than the reference does: a difference of
    implicit rewards. Source: Rafailov et al. 2023, section 5.1."""
    return beta * ((chosen_P - reference_chosen_P) - (rejected_P - reference_rejected_P))


def dpo_loss_sum(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    *,
    reference_chosen_P: torch.Tensor,
    reference_rejected_P: torch.Tensor,
    weights_P: torch.Tensor,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Arguments are log-probabilities of whole answers by the model and by the reference model.

    `label_smoothing`: the chance that a pair's label is wrong ("conservative" DPO).
    Source: Rafailov et al. 2023, eq. 7; smoothing: Mitchell 2023, "A note on DPO with noisy
    preferences".
    """
    margin_P = dpo_margins(
        chosen_P,
        rejected_P,
        reference_chosen_P=reference_chosen_P,
        reference_rejected_P=reference_rejected_P,
        beta=beta,
    )
    return _sigmoid_loss_sum(margin_P, weights_P, label_smoothing)


def orpo_margins(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    *,
    chosen_lengths_P: torch.Tensor,
    rejected_lengths_P: torch.Tensor,
) -> torch.Tensor:
    """Log odds ratio of the two answers; odds are of the mean log-probability a token."""
    chosen_odds_P = _log_odds(chosen_P / chosen_lengths_P.clamp(min=1))
    return chosen_odds_P - _log_odds(rejected_P / rejected_lengths_P.clamp(min=1))


def orpo_loss_sum(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    *,
    chosen_lengths_P: torch.Tensor,
    rejected_lengths_P: torch.Tensor,
    weights_P: torch.Tensor,
    lam: float = 0.1,
) -> torch.Tensor:
    """The preferred answer's mean loss a token, plus `lam` x the log odds ratio loss; no reference.

    Odds are of the mean log-probability a token.
    Source: Hong et al. 2024 (ORPO), sec. 4.1 and 4.2.
    """
    margin_P = orpo_margins(
        chosen_P,
        rejected_P,
        chosen_lengths_P=chosen_lengths_P,
        rejected_lengths_P=rejected_lengths_P,
    )
    loss_P = -chosen_P / chosen_lengths_P.clamp(min=1) - lam * F.logsigmoid(margin_P)
    return _counted_sum(loss_P, weights_P)


def reward_loss_sum(
    chosen_P: torch.Tensor,
    rejected_P: torch.Tensor,
    *,
    weights_P: torch.Tensor,
    margin_P: torch.Tensor | None = None,
) -> torch.Tensor:
    """Arguments are rewards. Bradley-Terry: minus the log-chance that the preferred one wins.

    Source: Ouyang et al. 2022 (InstructGPT), eq. 1; with a margin Touvron et al. 2023 (Llama 2),
    eq. 2.
    """
    difference_P = chosen_P - rejected_P
    if margin_P is not None:
        difference_P = difference_P - margin_P
    return _sigmoid_loss_sum(difference_P, weights_P, 0.0)


def _sigmoid_loss_sum(
    margin_P: torch.Tensor, weights_P: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    loss_P = -F.logsigmoid(margin_P)
    if label_smoothing:
        loss_P = (1 - label_smoothing) * loss_P - label_smoothing * F.logsigmoid(-margin_P)
    return _counted_sum(loss_P, weights_P)


def _log_odds(log_p_P: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) from log p < 0; at p = 1 the odds are taken one ulp below."""
    log_p_P = log_p_P.double().clamp(max=-torch.finfo(torch.float64).eps)
    return log_p_P - torch.log(-torch.expm1(log_p_P))


def _counted_sum(loss_P: torch.Tensor, weights_P: torch.Tensor) -> torch.Tensor:
    weighted_P = loss_P.double() * weights_P
    return weighted_P.masked_fill(weights_P == 0, 0.0).sum()
