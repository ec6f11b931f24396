"""Does transformers load the folder, and do its logits equal the trained model's?

The trained model is built from the checkpoint; the other side is `from_pretrained` of the folder,
as a user would do it: nothing of the export is used on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.batch import Batch, ExampleBatch, TokenBatch
from trainer.export.model_card import CheckResult
from trainer.export.trained import Trained, load_model
from trainer.models.exported import load_pretrained, our_answers, their_answers
from trainer.models.heads import HeadSpec
from trainer.tasks.table import head_of

# Both sides compute the same products in the same dtype; what may differ is the order of sums.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 6e-2, torch.float16: 1e-2}


@torch.no_grad()
def check_export(
    trained: Trained,
    folder: Path,
    *,
    dtype: torch.dtype,
    rows: Sequence[Batch],
    what: str,
    load: Callable[[], Any] | None = None,
) -> CheckResult:
    """`what` the rows are, as it is told. `load`: another way than transformers' from_pretrained.

    Raises: ModelError if transformers cannot load the folder, or leaves weights unset.
    """
    head = head_of(trained.plan)
    ours = load_model(trained, dtype=dtype, device=torch.device("cpu"))
    expected = [_ours(ours, batch, head) for batch in rows]
    del ours  # two models at once would double the memory
    theirs = load() if load else load_pretrained(folder, dtype=dtype, head=head)
    largest = 0.0
    for batch, wanted in zip(rows, expected, strict=True):
        for found, logits in zip(_theirs(theirs, batch, head), wanted, strict=True):
            largest = max(largest, float((found.float() - logits.float()).abs().max()))
    return CheckResult(
        rows=sum(len(b.sample_indices) for b in rows),
        what=what,
        max_logit_difference=largest,
        tolerance=_TOLERANCE[dtype],
    )


def _ours(model: Any, batch: Batch, head: HeadSpec | None) -> list[torch.Tensor]:
    """Logits of all rows; of examples under a head, of each alone, though they may share a row."""
    if head is not None:
        assert isinstance(batch, ExampleBatch)
        return our_answers(model, batch.fields)
    return [model.logits(*_rows(batch))]


def _theirs(model: Any, batch: Batch, head: HeadSpec | None) -> list[torch.Tensor]:
    if head is not None:
        assert isinstance(batch, ExampleBatch)
        return their_answers(model, batch.fields, head=head)
    inputs_RT, positions_RT = _rows(batch)
    # Before virtual tokens peft counts positions itself, and says so.
    given = {} if hasattr(model, "prompt_encoder") else {"position_ids": positions_RT}
    said = model(input_ids=inputs_RT, use_cache=False, **given)
    return [said.logits[:, -inputs_RT.shape[1] :]]  # peft's begin with those of virtual tokens


def _rows(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What a decoder is given: of text, or of examples that hold one."""
    if isinstance(batch, ExampleBatch):
        return batch.fields["inputs_RT"], batch.fields["positions_RT"]
    assert isinstance(batch, TokenBatch)
    return batch.inputs_RT, batch.positions_RT
