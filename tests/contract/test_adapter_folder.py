"""A folder of peft's: what we write answers like ours over the base, and what is there is gone on
from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.contract.test_adapters import BOTTLENECK, CLOSE, KINDS, Held, adapted, lora, shaken
from tests.helpers.encoders import ENCODERS, THREE, examples, sharp_encoder, tiny_encoder
from tests.helpers.encoders import hugging_face as hugging_face_encoder
from tests.helpers.models import folder_model, hugging_face, tiny_shape, tokens, wide_model
from trainer.engine.model_setup import trained
from trainer.errors import ModelError, Refused
from trainer.export.safetensors_folder import TensorSpec, write_weights
from trainer.models.exported import our_answers, their_answers
from trainer.models.heads import HeadSpec
from trainer.models.peft_folder import (
    WEIGHTS,
    adapter_of,
    stored_tensors,
    write_adapter_config,
)
from trainer.models.starting import starting_values

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def written(model: Any, section: Any, folder: Path, head: HeadSpec | None = None) -> Path:
    folder.mkdir()
    specs = [TensorSpec(stored, shape, name) for stored, name, shape in stored_tensors(model)]
    [file] = write_weights(folder, specs, Held(model), dtype=torch.float32, max_shard_bytes=1 << 40)
    file.rename(folder / WEIGHTS)
    write_adapter_config(model, adapter_of(section, head), folder, head=head)
    return folder


def over(path: Path, adapter: Any) -> Any:
    return folder_model(path).model_copy(update={"adapter": adapter})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_peft_loads_an_adapter_over_its_base_and_training_goes_on_from_it(
    family: str, kind: str, tmp_path: Path
) -> None:
    hugging_face(wide_model(tiny_shape(family))).save_pretrained(tmp_path / "base")
    adapter = KINDS[kind]
    if family == "llama":
        adapter = adapter.model_copy(update={"modules_to_save": ("lm_head", "norm")})
    section = over(tmp_path / "base", adapter)
    model = shaken(adapted(section))
    folder = written(model, section, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    inputs, positions = tokens()
    said = theirs(input_ids=inputs, position_ids=positions).logits
    torch.testing.assert_close(said, model.logits(inputs, positions), **CLOSE)
    again = adapted(over(tmp_path / "base", adapter.model_copy(update={"start": str(folder)})))
    for (name, one), (_, other) in zip(trained(model), trained(again), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize("family", ENCODERS)
@torch.no_grad()
def test_a_head_travels_with_its_adapter(family: str, tmp_path: Path) -> None:
    plain = sharp_encoder(tiny_encoder(family), HeadSpec("mlm"))
    hugging_face_encoder(plain).save_pretrained(tmp_path / "base")
    section = over(tmp_path / "base", lora())
    model = shaken(adapted(section, head=THREE))
    folder = written(model, section, tmp_path / "adapter", THREE)
    torch.manual_seed(8)  # their head is new, and not ours until the adapter brings it
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=3)
    theirs = peft.PeftModel.from_pretrained(base, folder).eval()
    packed = examples().packed
    answers = their_answers(theirs, packed, head=THREE)
    for one, other in zip(our_answers(model, packed), answers, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_folder_that_peft_itself_wrote_is_gone_on_from(tmp_path: Path) -> None:
    theirs = hugging_face(wide_model(tiny_shape("llama")))
    theirs.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["q_proj"], init_lora_weights=False)
    made = peft.get_peft_model(theirs, config).eval()
    made.save_pretrained(tmp_path / "adapter")
    start = lora("q_proj").model_copy(update={"start": str(tmp_path / "adapter")})
    ours = adapted(over(tmp_path / "base", start))
    inputs, positions = tokens()
    said = made(input_ids=inputs, position_ids=positions).logits
    torch.testing.assert_close(ours.logits(inputs, positions), said, **CLOSE)
    for changes, message in (
        ({"rank": 8}, r"has r=4, and model.adapter.rank asks for 8"),
        ({"alpha": 5.0}, r"has lora_alpha=6, and model.adapter.alpha asks for 5.0"),
        ({"kind": "dora"}, r"has use_dora=False, and model/adapter asks for True"),
        ({"targets": ("v_proj",)}, r"does not fit the model: it lacks base_model.model.*v_proj"),
        ({"start": str(tmp_path / "base")}, "is no adapter of peft's: it has no adapter_config"),
    ):
        other = over(tmp_path / "base", start.model_copy(update=changes))
        with pytest.raises(ModelError, match=message):
            adapted(other)
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "IA3"}))
    with pytest.raises(ModelError, match="has peft_type='IA3', and model/adapter asks for 'LORA'"):
        adapted(over(tmp_path / "base", start))


def test_what_a_run_began_with_may_be_gone_when_it_goes_on(tmp_path: Path) -> None:
    hugging_face(wide_model(tiny_shape("llama"))).save_pretrained(tmp_path / "base")
    gone = over(tmp_path / "base", lora().model_copy(update={"start": str(tmp_path / "gone")}))
    model = adapted(over(tmp_path / "base", lora()))
    starting_values(gone, model, seed=1, frozen_only=True)
    with pytest.raises(ModelError, match="is no adapter of peft's"):
        starting_values(gone, model, seed=1)


@pytest.mark.parametrize(
    ("section", "head", "message"),
    [
        (tiny_shape("llama", adapter=BOTTLENECK), None, "bottleneck is none that peft has"),
        (tiny_shape("llama", adapter=lora()), None, "no pretrained folder to load an adapter over"),
        (over(Path("x"), lora()), HeadSpec("mlm"), "a mlm head has parameters of no module"),
        (
            over(Path("x"), lora()).model_copy(update={"vocab_size": 128}),
            None,
            "vocab_size=128 added entries that x has not; export the whole model",
        ),
    ],
)
def test_adapters_that_peft_cannot_load_over_a_base_are_refused(
    section: Any, head: HeadSpec | None, message: str
) -> None:
    with pytest.raises(Refused, match=message):
        adapter_of(section, head)
