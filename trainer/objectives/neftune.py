"""NEFTune: noise on the embeddings of a fine-tuning batch.

Shapes: R rows, T positions, H embedding size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from trainer.dist.draws import Draws


def neftune_noise(
    lengths_R: Sequence[int],
    *,
    shape_TH: tuple[int, int],
    alpha: float,
    seed: int,
    step: int,
    rows: Sequence[int],
) -> torch.Tensor:
    """To be added to embeddings (R, T, H), in training only: uniform over +-alpha / sqrt(L x H).

    `lengths_R` are the tokens L of each row that are not padding, which lies at its end; `rows` are
    global sample indices. The noise of a row depends on (seed, step, row) alone, on its length and
    on H: not on how far the batch is padded, nor on the rank.
    Source: Jain et al. 2023 (NEFTune), algorithm 1.
    """
    positions, width = shape_TH
    noise_RTH = torch.zeros(len(lengths_R), positions, width)
    for r, (length, row) in enumerate(zip(lengths_R, rows, strict=False)):
        if length:
            drawn = torch.from_numpy(Draws("neftune", seed, step, row).uniforms(length * width))
            scale = alpha / math.sqrt(length * width)
            noise_RTH[r, :length] = ((2.0 * drawn - 1.0) * scale).float().view(length, width)
    return noise_RTH
