"""Does transformers load the folder, and do its logits equal the trained model's?

The trained model is built from the checkpoint; the other side is `from_pretrained` of the folder,
as a user would do it: nothing of the export is used on both sides.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.batch import TokenBatch
from trainer.export.model_card import CheckResult
from trainer.export.trained import Trained, load_model
from trainer.models.exported import load_pretrained

# Both sides compute the same products in the same dtype; what may differ is the order of sums.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@torch.no_grad()
def check_export(
    trained: Trained, folder: Path, *, dtype: torch.dtype, rows: Sequence[TokenBatch], what: str
) -> CheckResult:
    """`what` the rows are, as it is told.

    Raises: ModelError if transformers cannot load the folder, or leaves weights unset."""
    device = torch.device("cpu")
    ours = load_model(trained, dtype=dtype, device=device)
    expected = [ours.logits(b.inputs_RT, b.positions_RT).float() for b in rows]
    del ours  # two models at once would double the memory
    theirs = load_pretrained(folder, dtype=dtype)
    largest = 0.0
    for batch, logits_RTV in zip(rows, expected, strict=True):
        found = theirs(
            input_ids=batch.inputs_RT, position_ids=batch.positions_RT, use_cache=False
        ).logits
        largest = max(largest, float((found.float() - logits_RTV).abs().max()))
    return CheckResult(
        rows=sum(len(b.sample_indices) for b in rows),
        what=what,
        max_logit_difference=largest,
        tolerance=_TOLERANCE[dtype],
    )
