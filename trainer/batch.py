"""What passes from data to task and engine: one micro-batch of one rank.

Shapes: R rows (micro_batch_size), T positions (sequence_length, or less), S positions of a decoder,
E examples of the batch, C numbers an example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch

IGNORED = -100  # a label that is not a term of the loss
CHOSEN, REJECTED = 1, 2  # whose a position is, of a pair of answers


class Batch(Protocol):
    """What loop, evaluations and guard need to know of any batch."""

    @property
    def sample_indices(self) -> tuple[int, ...]:
        """Global index of each real row; fewer than R at the end."""

    @property
    def terms(self) -> float:
        """What the loss of this batch is a sum over, and the loss of a step a mean; of tokens that
        have weights, the sum of these.
        """

    @property
    def tokens(self) -> int:
        """Tokens that are not padding."""

    def to(self: B, device: torch.device) -> B: ...


B = TypeVar("B", bound=Batch)


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


@dataclass(frozen=True)
class ExampleBatch:
    """Rows of one or several examples each, as a task's encoding made them.

    Names of `fields`, of which a task has some; a stored column `x` is x_RT, x_RS, x_E or x_EC:

        inputs_RT       int64; the padding id where a row has no example
        positions_RT    int64; restart at 0 with each example
        documents_RT    int64; 1, 2, ... the number of the example within its row, 0 on padding
        segments_RT     int64; BERT's token_type_ids
        answers_RT      int64; of pairs: 1 the preferred answer with its prompt, 2 the other, 0 none
        labels_RT       int64; IGNORED where nothing is learnt
        weights_RT      float32; of tasks that are weighted: how much each label counts, else 0
        first_E         int64; r * T + t of each example's first token; -1 where there is none
        weights_E       float32; 1, and 0 where there is no example
        classes_E       int64, targets_EC float32: what an example is to get
        decoder_inputs_RS, decoder_positions_RS, decoder_documents_RS, labels_RS, weights_RS: of
            decoders

    Examples stand in the order of their rows. T is as long as the batch's longest row needs; there
    is always one example, of weight 0 if need be. Rows beyond the global batch hold padding alone.
    """

    fields: Mapping[str, torch.Tensor]
    sample_indices: tuple[int, ...]
    terms: float
    tokens: int
    text: Sequence[Any] = field(default=())  # of held-out examples: what their scores need, E long

    def to(self, device: torch.device) -> ExampleBatch:
        if device.type == "cpu":
            return self
        moved = {name: t.to(device, non_blocking=True) for name, t in self.fields.items()}
        return ExampleBatch(moved, self.sample_indices, self.terms, self.tokens, self.text)
