"""Adapters beside an encoder-decoder's matrices: trained, merged, or by peft over its base."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import task_cases
from tests.helpers.trained_run import trained_by
from trainer.commands import export
from trainer.errors import Exit
from trainer.records.run_files import RunFiles

_PLAIN = [
    "engine=plain",
    "optimizer=adamw",
    "optimizer.learning_rate=0.02",
    "observers.tensorboard.enabled=false",
]
_MATRICES = ["model.adapter.targets=[q,v,wi,wo]", "model.adapter.rank=4"]
_ADAPTERS = {
    "lora": ["model/adapter=lora", *_MATRICES],
    "dora": ["model/adapter=dora", *_MATRICES],
    "ia3": ["model/adapter=ia3", "optimizer.learning_rate=0.1"],
}


def _exported(run: RunFiles, folder: Path, *more: str) -> Path:
    given = [str(run.root), "--to", str(folder), "--dtype", "fp32"]
    assert export.main([*(given[:3] if "--adapter" in more else given), *more]) == Exit.DONE
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # peft asks transformers so
def test_what_was_trained_is_the_same_merged_and_over_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transformers: Any = import_module("transformers")
    peft: Any = import_module("peft")
    whole = trained_by(
        task_cases.case_plan(tmp_path, "seq2seq_t5", _PLAIN), tmp_path / "runs" / "whole"
    )
    base = _exported(whole, tmp_path / "base")
    tuned = replace(task_cases.CASES["seq2seq_t5"], model=("model=hf_folder",))
    monkeypatch.setitem(task_cases.CASES, "tuned_t5", tuned)

    def load(folder: Path) -> Any:
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()

    ids = torch.arange(1, 31).view(2, 15)
    for kind, adapter in _ADAPTERS.items():
        given = [f"model.path={base}", *_PLAIN, *adapter]
        plan = task_cases.case_plan(tmp_path, "tuned_t5", given)
        run = trained_by(plan, tmp_path / "runs" / kind)
        alone = _exported(run, tmp_path / f"{kind}-alone", "--adapter")
        merged = _exported(run, tmp_path / f"{kind}-merged")
        with torch.no_grad():
            said, theirs, before = (
                model(input_ids=ids, decoder_input_ids=ids).logits
                for model in (
                    load(merged),
                    peft.PeftModel.from_pretrained(load(base), alone).eval(),
                    load(base),
                )
            )
        torch.testing.assert_close(said, theirs, atol=1e-4, rtol=1e-4, msg=kind)
        assert (said - before).abs().max() > 1e-2, kind
