"""Prefix language modelling: a row's start is read, its rest is said.

Shapes: R rows, T positions, D documents of a row.
"""

from __future__ import annotations

import torch

from trainer.batch import IGNORED
from trainer.dist.draws import Draws


def prefix_length(length: int, *, seed: int, step: int, row: int, document: int = 0) -> int:
    """How much of a document of `length` tokens is only read: uniform in 1..length-1.

    Source: Liu et al. 2018; Raffel et al. 2020 (T5), sec. 3.2.1.
    """
    draws = Draws("prefix", seed, step, row, document)
    return 1 + int(draws.below(max(length - 1, 1), 1)[0])


def prompts_of(labels_RT: torch.Tensor, positions_RT: torch.Tensor) -> torch.Tensor:
    """bool (R, T): is the position one of its document's prompt? Of one that has no label all are.

    A prompt ends where the first label stands: its last token predicts the first one said.
    `labels_RT` are shifted; `positions_RT` restart with each document.
    """
    said_RT = (labels_RT != IGNORED).long()
    before_RT = said_RT.cumsum(-1) - said_RT
    first_RT = torch.arange(labels_RT.shape[-1], device=labels_RT.device) - positions_RT
    return before_RT == before_RT.gather(-1, first_RT.clamp(min=0))


def prefix_lm_labels(
    labels_RT: torch.Tensor, positions_RT: torch.Tensor, prefix_RT: torch.Tensor
) -> torch.Tensor:
    """`labels_RT` (already shifted: the token after each position) without those in the prefix.

    `positions_RT` restart with each document; `prefix_RT` is, at each position, the length of the
    prefix of its document. The last token of the prefix predicts the first one said.
    Which positions see the whole prefix is the model's mask, not said here.
    """
    return labels_RT.masked_fill(positions_RT + 1 < prefix_RT, IGNORED)
