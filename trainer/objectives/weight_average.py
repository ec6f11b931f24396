"""Averages of weights over training, as arithmetic on fragments: any shard of any engine.

Element by element, so that an average of shards is the shard of the average.
"""

from __future__ import annotations

import torch


def averaged_(average: torch.Tensor, weights: torch.Tensor, *, decay: float) -> None:
    """average = decay x average + (1 - decay) x weights, in place.

    `average` should be fp32: with decay 0.9999 a bf16 one never moves.
    """
    average.lerp_(weights.to(average.dtype), 1.0 - decay)


def warmed_decay(step: int, decay: float) -> float:
    """A decay that starts low, so that the first weights are soon forgotten; step 1 is the first.

    Source: TensorFlow's ExponentialMovingAverage with num_updates, min(decay, (1+n) / (10+n)).
    """
    return min(decay, (1 + step) / (10 + step))
