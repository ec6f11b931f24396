"""A checkpoint -> what was trained alone, as a folder that peft loads over the frozen base.

adapter_config.json  adapter_model.safetensors  tokenizer.json  README.md
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from trainer.batch import Batch
from trainer.config.sections.adapters import PromptAdapter
from trainer.export.check import check_export
from trainer.export.export import DTYPES, Exported, ExportedTokenizer, refuse_mismatch
from trainer.export.incoming import published
from trainer.export.model_card import adapter_card
from trainer.export.safetensors_folder import TensorSpec, write_weights
from trainer.export.trained import Trained, load_model
from trainer.models.adapters import load_adapter
from trainer.models.build import build_model
from trainer.models.exported import load_base
from trainer.models.peft_folder import (
    WEIGHTS,
    adapter_of,
    stored_tensors,
    write_adapter_config,
    write_prompt,
)
from trainer.models.wrappers import AnyModel
from trainer.tasks.table import head_of

_ONE_FILE = 1 << 62


def export_adapter(
    trained: Trained,
    folder: Path,
    *,
    dtype: str,
    tokenizer: ExportedTokenizer,
    rows: Sequence[Batch],
    rows_are: str = "held-out rows",
) -> Exported:
    """Write `folder`; `rows`: what peft's model is compared with ours on (none: no check).

    Raises: Refused if the folder exists, or peft has no such adapter, or there is no base to load
    it over; ExportMismatch if the check fails; CheckpointError.
    """
    plan, head = trained.plan, head_of(trained.plan)
    section = adapter_of(trained.model, head)
    meta = build_model(section, vocab_size=plan.vocab_size, dtype=torch.float32, head=head)
    with published(folder) as incoming:
        weights = _write(trained, meta, incoming, dtype=DTYPES[dtype])
        write_adapter_config(meta, section, incoming, head=head)
        tokenizer.write(incoming)
        check = None
        if rows:
            check = check_export(
                trained,
                incoming,
                dtype=DTYPES[dtype],
                rows=rows,
                what=rows_are,
                load=lambda: load_adapter(
                    load_base(section, vocab_size=plan.vocab_size, dtype=DTYPES[dtype], head=head),
                    incoming,
                ),
            )
        refuse_mismatch(check)
        card = adapter_card(
            plan, base=section.path, step=trained.step, loss=trained.loss, dtype=dtype, check=check
        )
        (incoming / "README.md").write_text(card, encoding="utf-8")
        size = weights.stat().st_size
    return Exported(folder=folder, files=1, bytes=size, check=check)


def _write(trained: Trained, meta: AnyModel, folder: Path, *, dtype: torch.dtype) -> Path:
    if isinstance(trained.model.adapter, PromptAdapter):
        whole = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
        return write_prompt(whole, folder, dtype=dtype)
    specs = [TensorSpec(stored, shape, name) for stored, name, shape in stored_tensors(meta)]
    [file] = write_weights(folder, specs, trained.source, dtype=dtype, max_shard_bytes=_ONE_FILE)
    return file.rename(folder / WEIGHTS)
