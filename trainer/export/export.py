"""A checkpoint -> a Hugging Face folder: streamed, checked, published by one rename.

config.json  model*.safetensors  tokenizer.json  generation_config.json  README.md
longhaul.json   the plan and the step it came from
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from trainer.batch import Batch
from trainer.errors import LonghaulError, Refused
from trainer.export.check import check_export
from trainer.export.incoming import published
from trainer.export.model_card import CheckResult, model_card
from trainer.export.safetensors_folder import TensorSpec, write_weights
from trainer.export.trained import Trained, write_origin
from trainer.models.exported import save_config
from trainer.models.merged import merges
from trainer.tasks.table import head_of

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class ExportMismatch(LonghaulError):
    """The exported model does not answer like the trained one; nothing was published."""


class ExportedTokenizer(Protocol):
    """What goes beside the weights."""

    @property
    def end_of_text_id(self) -> int | None:
        """Of a model that generates."""

    def write(self, folder: Path) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Exported:
    folder: Path
    files: int
    bytes: int
    check: CheckResult | None


def export_folder(
    trained: Trained,
    folder: Path,
    *,
    dtype: str,
    max_shard_bytes: int,
    tokenizer: ExportedTokenizer,
    rows: Sequence[Batch],
    rows_are: str = "held-out rows",
) -> Exported:
    """Write `folder`; `rows` are what the check compares logits on (none: no check).
    `rows_are`: which ones, for the model card.

    Raises: Refused if the folder exists, or nothing without its adapter computes what the model
    does; ExportMismatch if the check fails; CheckpointError.
    """
    if not merges(trained.model):
        kind = trained.model.adapter.kind
        what = f"model/adapter={kind} computes what no model without it does"
        raise Refused(f"{what}, so that there is no folder to export; its checkpoints stay usable")
    with published(folder) as incoming:
        files = write_weights(
            incoming,
            [TensorSpec(name, shape, name) for name, shape in trained.names],
            trained.source,
            dtype=DTYPES[dtype],
            max_shard_bytes=max_shard_bytes,
        )
        save_config(
            trained.model,
            incoming,
            vocab_size=trained.plan.vocab_size,
            dtype=DTYPES[dtype],
            end_of_text_id=tokenizer.end_of_text_id,
            head=head_of(trained.plan),
        )
        tokenizer.write(incoming)
        check = None
        if rows:
            check = check_export(trained, incoming, dtype=DTYPES[dtype], rows=rows, what=rows_are)
        refuse_mismatch(check)
        card = model_card(
            trained.plan, step=trained.step, loss=trained.loss, dtype=dtype, check=check
        )
        (incoming / "README.md").write_text(card, encoding="utf-8")
        write_origin(incoming, trained)
        size = sum(f.stat().st_size for f in files)
    return Exported(folder=folder, files=len(files), bytes=size, check=check)


def refuse_mismatch(check: CheckResult | None) -> None:
    if check is not None and not check.passed:
        raise ExportMismatch(
            f"the exported model's logits differ from the trained model's by up to "
            f"{check.max_logit_difference:.3g} (allowed {check.tolerance:g}); not published"
        )
