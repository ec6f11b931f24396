"""Who may attend to whom when several examples share a row.

A row's positions carry the number of their document, 1, 2, ..., and 0 for padding. Padding attends
to padding alone: every query then has a key, and no softmax divides by nothing.

Shapes: R rows, T positions, S positions of the target.
"""

from __future__ import annotations

import torch


def same_document(queries_RS: torch.Tensor, keys_RT: torch.Tensor) -> torch.Tensor:
    """bool (R, 1, S, T): true where query and key are of one document (for every head)."""
    return (queries_RS.unsqueeze(-1) == keys_RT.unsqueeze(-2)).unsqueeze(1)


def within(mask_R1TT: torch.Tensor, window: int) -> torch.Tensor:
    """Of the mask, what lies at most `window` positions away, either side."""
    place_T = torch.arange(mask_R1TT.shape[-1], device=mask_R1TT.device)
    return mask_R1TT & ((place_T.unsqueeze(-1) - place_T).abs() <= window)


def causal(mask_R1SS: torch.Tensor) -> torch.Tensor:
    """Of the mask, what does not lie ahead."""
    return mask_R1SS & torch.ones(mask_R1SS.shape[-2:], device=mask_R1SS.device).tril().bool()


def around_prompts(positions_RT: torch.Tensor, prompts_RT: torch.Tensor) -> torch.Tensor:
    """bool (R, 1, T, T): what does not lie ahead, and within a prompt what does.

    `positions_RT` restart with each document; `prompts_RT`, bool: is it one of its prompt.
    """
    documents_RT = (positions_RT == 0).cumsum(-1)
    same_R1TT = same_document(documents_RT, documents_RT)
    both_R1TT = (prompts_RT.unsqueeze(-1) & prompts_RT.unsqueeze(-2)).unsqueeze(1)
    return causal(same_R1TT) | (same_R1TT & both_R1TT)


def as_taken(mask: torch.Tensor, attention: str, dtype: torch.dtype) -> torch.Tensor:
    """As the attention of that name takes a mask: torch's kernels a choice, eager an addend."""
    if attention != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
