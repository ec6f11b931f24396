"""An independent training loop: Hugging Face's model, torch's optimizer, nothing of ours but rows.

It shares no code with the loop, the engines, the loss head or the optimizer groups: what they
compute is held against this, so it is written the plain way on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional

from trainer.batch import IGNORED, TokenBatch


def train_reference(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[Sequence[TokenBatch]],
    *,
    learning_rate: Callable[[int], float],
    max_grad_norm: float,
) -> list[float]:
    """Train `model` (a Hugging Face causal LM) and return the mean loss of every step.

    Each step's rows are one whole step of the run, as one process would see them; the loss is
    the mean over the step's terms. `max_grad_norm` 0 means no clipping.
    """
    model.train()
    losses = []
    for step, batches in enumerate(steps, start=1):
        terms = sum(int((b.labels_RT != IGNORED).sum()) for b in batches)
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for batch in batches:
            logits_RTV = model(
                input_ids=batch.inputs_RT, position_ids=batch.positions_RT, use_cache=False
            ).logits
            losses_N = functional.cross_entropy(
                logits_RTV.float().flatten(0, 1),
                batch.labels_RT.flatten(),
                ignore_index=IGNORED,
                reduction="none",
            )
            loss = losses_N.double().sum()  # a thousand terms in fp32 lose the seventh digit
            (loss / terms).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        if max_grad_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        optimizer.step()
        losses.append(total / terms)
    return losses
