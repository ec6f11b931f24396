"""`longhaul evaluate` of text: a loss that can be compared between tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.batch import IGNORED, Batch, TokenBatch
from trainer.data.token_bytes import bytes_of_tokens
from trainer.evals.metrics.bits_per_byte import BitsPerByte
from trainer.plan import RunPlan


def bits_per_byte(plan: RunPlan, batches: Sequence[Batch], *, loss: float) -> dict[str, float]:
    """By its name, of next tokens in text; nothing for other tasks, and for tokenizers whose tokens
    do not say how much text they are. `loss`: summed over the batches' labels, in nats; ends of
    texts are predicted, too, and stand for no byte.
    """
    if plan.config.task.kind != "causal_lm":
        return {}
    bytes_V = bytes_of_tokens(Path(plan.stores[0].path))
    if bytes_V is None:
        return {}
    total = 0
    for batch in batches:
        assert isinstance(batch, TokenBatch)
        labels = batch.labels_RT[batch.labels_RT != IGNORED].numpy()
        total += int(bytes_V[labels].sum())
    metric = BitsPerByte()
    return metric.value(metric.sums_of(loss, total))
