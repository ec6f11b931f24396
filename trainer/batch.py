"""What passes from data to task and engine: one micro-batch of one rank.

Shapes: R rows (micro_batch_size), T positions (sequence_length).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

IGNORED = -100  # a label that is not a term of the loss


@dataclass(frozen=True)
class TokenBatch:
    """Packed rows for next-token prediction; the labels are already shifted.

    `positions_RT` restart at 0 with each document: that alone separates documents in attention
    (see models/attention.py). Rows beyond the global batch have only IGNORED labels.
    """

    inputs_RT: torch.Tensor  # int64
    labels_RT: torch.Tensor  # int64; the token after inputs_RT, or IGNORED
    positions_RT: torch.Tensor  # int64
    sample_indices: tuple[int, ...]  # global index of each real row; fewer than R at the end
    terms: int  # labels that count
    tokens: int  # tokens that are not padding

    def to(self, device: torch.device) -> TokenBatch:
        if device.type == "cpu":
            return self
        return TokenBatch(
            self.inputs_RT.to(device, non_blocking=True),
            self.labels_RT.to(device, non_blocking=True),
            self.positions_RT.to(device, non_blocking=True),
            self.sample_indices,
            self.terms,
            self.tokens,
        )
