"""Virtual tokens say what peft's say, loaded from what is exported of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.contract.test_adapters import CLOSE, adapted, shaken
from tests.helpers.encoders import THREE, tiny_encoder
from tests.helpers.models import VOCAB, folder_model, hugging_face, tiny_shape, tokens, wide_model
from trainer.config.sections.adapters import PromptAdapter
from trainer.engine.model_setup import trained
from trainer.errors import ConfigError, Refused
from trainer.models.build import build_model
from trainer.models.peft_folder import write_adapter_config, write_prompt

pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ("prompt", "p_tuning", "prefix")


def prompt(kind: Any) -> PromptAdapter:
    return PromptAdapter(kind=kind, virtual_tokens=5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_peft_says_the_same_from_what_is_exported(family: str, kind: str, tmp_path: Path) -> None:
    hugging_face(wide_model(tiny_shape(family))).save_pretrained(tmp_path / "base")
    section = folder_model(tmp_path / "base").model_copy(update={"adapter": prompt(kind)})
    model = shaken(adapted(section))
    names = [name for name, _ in trained(model)]
    assert names
    assert all(name.startswith("prompt.") for name in names)
    inputs, positions = tokens()
    model(inputs, positions, inputs).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for _, p in trained(model))
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_prompt(model, folder, dtype=torch.float32)
    write_adapter_config(model, section, folder, head=None)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base").eval()
    with torch.no_grad():
        ours, plain = model.logits(inputs, positions), base(input_ids=inputs).logits
        theirs = peft.PeftModel.from_pretrained(base, folder).eval()
        said = theirs(input_ids=inputs).logits[:, -inputs.shape[1] :]
    torch.testing.assert_close(said, ours, **CLOSE)
    assert (ours - plain).abs().max() > 0.01
    with pytest.raises(Refused, match="generated without the virtual tokens"):
        model.hf.generate(inputs)


def test_models_that_no_virtual_token_stands_before_are_refused() -> None:
    encoder = tiny_encoder("bert", adapter=prompt("prompt"))
    with pytest.raises(ConfigError, match="before a decoder's row, and bert is none"):
        build_model(encoder, vocab_size=VOCAB, dtype=torch.float32, head=THREE)
    window = tiny_shape("mistral", adapter=prompt("prefix"))
    with pytest.raises(ConfigError, match="prefixes know no sliding windows"):
        build_model(window, vocab_size=VOCAB, dtype=torch.float32)
