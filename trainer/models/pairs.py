"""Pairs of answers within rows: where each answer stands, and its own positions.

An example is a prompt with the preferred answer, then the prompt with the other; `answers_RT` says
whose a position is (1, 2; 0: padding). Positions restart with each, so that a decoder keeps them
apart as it does documents.

Shapes: R rows, T positions, E examples (pairs).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from trainer.batch import CHOSEN, REJECTED


@dataclass(frozen=True)
class Pairs:
    """`chosen_RT`, `rejected_RT`: the number of the pair of whose answer a position is; -1: none.

    `last_chosen_E`, `last_rejected_E`: r * T + t of an answer's last token; 0 without any pair.
    """

    positions_RT: torch.Tensor
    chosen_RT: torch.Tensor
    rejected_RT: torch.Tensor
    last_chosen_E: torch.Tensor
    last_rejected_E: torch.Tensor


def pairs_of(fields: Mapping[str, torch.Tensor]) -> Pairs:
    """Of an ExampleBatch's fields."""
    answers_RT, documents_RT = fields["answers_RT"], fields["documents_RT"]
    run_RT = 3 * documents_RT + answers_RT
    begins_RT = run_RT != run_RT.roll(1, -1)
    begins_RT[:, 0] = True
    place_T = torch.arange(run_RT.shape[-1], device=run_RT.device)
    begin_RT = (place_T * begins_RT).cummax(-1).values
    ends_RT = begins_RT.roll(-1, -1)  # the last position of a row is followed by its first
    before_R = documents_RT.amax(-1).cumsum(0) - documents_RT.amax(-1)
    pair_RT = documents_RT - 1 + before_R.unsqueeze(-1)

    def owned(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        mine_RT = answers_RT == number
        last_E = torch.zeros_like(fields["first_E"])
        found = (ends_RT & mine_RT).flatten().nonzero().squeeze(-1)
        last_E[: len(found)] = found
        return pair_RT.masked_fill(~mine_RT, -1), last_E

    chosen_RT, last_chosen_E = owned(CHOSEN)
    rejected_RT, last_rejected_E = owned(REJECTED)
    positions_RT = (place_T - begin_RT) * (documents_RT > 0)
    return Pairs(positions_RT, chosen_RT, rejected_RT, last_chosen_E, last_rejected_E)
