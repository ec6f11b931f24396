"""A run that trains an adapter, from its plan to what peft loads of it."""

from __future__ import annotations

import json
import math
import threading
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.trained_run import trained_by, trained_run
from trainer.build import build_job
from trainer.checkpoint.folder import StepFolders
from trainer.commands import export
from trainer.config.sections.adapters import (
    BottleneckAdapter,
    Ia3Adapter,
    LoraAdapter,
    PromptAdapter,
)
from trainer.config.sections.model import FolderModel
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone
from trainer.errors import Exit, ModelError
from trainer.export.trained import open_trained
from trainer.job import wind_up
from trainer.plan import RunPlan, read_plan
from trainer.planning import make_plan
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
ADAPTERS = {
    "lora": LoraAdapter(kind="lora", rank=16, alpha=32.0, dropout=0.1, targets=("all",)),
    "ia3": Ia3Adapter(kind="ia3", targets=("auto",)),
    "p_tuning": PromptAdapter(kind="p_tuning", virtual_tokens=6),
    "prefix": PromptAdapter(kind="prefix", virtual_tokens=6),
    "bottleneck": BottleneckAdapter(kind="bottleneck", size=8, targets=("auto",)),
}


@dataclass(frozen=True)
class Tuned:
    base: Path
    run: RunFiles
    plan: RunPlan


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    changes = ("model.tie_word_embeddings=false", "data.packing=false")
    run = trained_run(tmp_path_factory.mktemp("adapter"), *changes)
    code = export.main([str(run.root), "--to", str(run.root.parent / "base"), "--rows", "0"])
    assert code == Exit.DONE
    return run


@pytest.fixture(scope="module", params=ADAPTERS)
def tuned(request: pytest.FixtureRequest, whole: RunFiles) -> Tuned:
    base, before = whole.root.parent / "base", read_plan(whole.attempt(1).plan)
    shape = before.config.model
    section = FolderModel(
        kind="folder", path=str(base), weights="pretrained", vocab_size=0, attention="sdpa",
        activation_checkpointing=False, compile=False, adapter=ADAPTERS[request.param],
        loss_chunk_tokens=shape.loss_chunk_tokens,
    )  # fmt: skip
    named = before.config.run.model_copy(update={"name": request.param})
    config = before.config.model_copy(update={"model": section, "run": named})
    plan = make_plan(
        config, attempt=1, run_id=before.run_id, stores=before.stores, device="cpu", cores=1,
        vocab_size_of_tokenizer=before.vocab_size,
    )  # fmt: skip
    return Tuned(base, trained_by(plan, whole.root.parent / request.param), plan)


def test_a_checkpoint_holds_what_the_plan_says(tuned: Tuned) -> None:
    folders = StepFolders(LocalStorage(), tuned.run.checkpoints)
    newest = folders.steps()[-1]
    manifest, _ = folders.manifest(newest)
    assert sum(math.prod(t.shape) for t in manifest.tensors) == tuned.plan.num_trained
    payload = sum(f.stat().st_size for f in folders.step(newest).iterdir() if f.suffix != ".json")
    assert tuned.plan.checkpoint_bytes <= payload
    assert payload < 1.05 * tuned.plan.checkpoint_bytes + 16_384, payload  # and headers


def test_peft_loads_what_was_trained_over_the_base(
    tuned: Tuned, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone, merged = tmp_path / "adapter", tmp_path / "merged"
    to = [str(tuned.run.root), "--json", "--to"]
    if tuned.run.name == "bottleneck":
        assert export.main([*to, str(alone), "--adapter"]) == Exit.REFUSED
        assert "bottleneck is none that peft has a folder for" in capsys.readouterr().err
        assert export.main([*to, str(merged)]) == Exit.REFUSED
        assert "bottleneck computes what no model without it does" in capsys.readouterr().err
        assert not alone.exists()
        assert not merged.exists()
        return
    folders = [(alone, ["--adapter"]), (merged, [])]
    if tuned.run.name in ("p_tuning", "prefix"):
        assert export.main([*to, str(merged)]) == Exit.REFUSED
        assert "computes what no model without it does" in capsys.readouterr().err
        folders = folders[:1]
    for folder, more in folders:
        assert export.main([*to, str(folder), *more]) == Exit.DONE
        said = json.loads(capsys.readouterr().out)
        assert said["max_logit_difference"] < 1e-4, said
    assert "base_model:" in (alone / "README.md").read_text()
    if not merged.exists():
        return
    plain = AutoModelForCausalLM.from_pretrained(merged).eval()
    over = AutoModelForCausalLM.from_pretrained(tuned.base)
    theirs = peft.PeftModel.from_pretrained(over, alone).eval()
    ids = torch.arange(1, 31).view(2, 15)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, theirs(ids).logits, atol=1e-4, rtol=1e-4)
        untouched = AutoModelForCausalLM.from_pretrained(tuned.base)(ids).logits
        assert (plain(ids).logits - untouched).abs().max() > 1e-3


def test_a_base_that_changed_is_refused_when_the_run_goes_on_and_when_it_is_exported(
    tuned: Tuned,
) -> None:
    weights = tuned.base / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(ModelError, match=r"model\.safetensors is another file"):
            build_job(tuned.plan, Alone(), run=tuned.run, stop=threading.Event(), startup=StartUp())
        with pytest.raises(ModelError, match=r"model\.safetensors is another file"):
            open_trained(tuned.run.root)
    finally:
        weights.write_bytes(whole)
    job, state = build_job(
        tuned.plan, Alone(), run=tuned.run, stop=threading.Event(), startup=StartUp()
    )
    assert state.step == 6
    wind_up(job, state.step)
