"""What is no model to train: rows that leak into each other, folders, shapes that cannot be."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.models import (
    FAMILIES,
    VOCAB,
    filled,
    folder_model,
    save_folder,
    tiny_shape,
    tokens,
    wide_model,
)
from trainer.config.sections.model import FolderModel
from trainer.errors import ConfigError, ModelError
from trainer.models.attention import check_packing, packing_leak, refuse_leak
from trainer.models.build import build_model
from trainer.models.hf_config import hf_config
from trainer.models.weights import SafetensorsFolder

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

_CPU = torch.device("cpu")
every_family = pytest.mark.parametrize("family", FAMILIES)


# --- the probe -----------------------------------------------------------------------------------


@every_family
def test_the_probe_admits_every_family_at_any_size_in_no_time(family: str) -> None:
    gpt = family.startswith("gpt")
    section = tiny_shape(
        family,
        hidden_size=4096,
        num_attention_heads=32,
        num_key_value_heads=32 if gpt else 8,
        head_dim=128,
        intermediate_size=11008,
        num_hidden_layers=32,
        vocab_size=128256,
        max_position_embeddings=8192,
        sliding_window=4096 if family == "mistral" else None,
    )
    state = torch.get_rng_state()
    build_model(section, vocab_size=128256, dtype=torch.float32)  # imports are not the probe's
    begin = time.process_time()
    check_packing(section, device=_CPU)
    assert time.process_time() - begin < 5.0
    assert torch.equal(torch.get_rng_state(), state)


def test_an_encoder_whose_documents_see_each_other_is_refused() -> None:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )
    torch.manual_seed(0)
    bert = BertModel(config, add_pooling_layer=False).eval()

    def logits(inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = bert(input_ids=inputs, position_ids=positions).last_hidden_state
        return hidden

    with pytest.raises(ModelError, match=r"see each other.*data\.packing=false"):
        refuse_leak(logits, name="bert", device=_CPU)


@every_family
def test_the_probe_sees_what_a_cache_would_do(family: str) -> None:
    """The planted fault: with a key-value cache Hugging Face ignores restarting positions."""
    model = wide_model(tiny_shape(family))

    def logits(inputs: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = model.hf.base_model(input_ids=inputs, position_ids=positions, use_cache=True)
        return model.lm_head(hidden.last_hidden_state)

    assert packing_leak(logits, device=_CPU) > 1e-2


# --- folders -------------------------------------------------------------------------------------


@every_family
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_that_transformers_wrote_loads_with_equal_logits(
    family: str, tied: bool, tmp_path: Path
) -> None:
    original = wide_model(tiny_shape(family, tie_word_embeddings=tied))
    save_folder(original, tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    model = build_model(folder_model(tmp_path), vocab_size=VOCAB, dtype=torch.float32)
    layout = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    filled(model, SafetensorsFolder(tmp_path, layout)).eval()
    inputs, positions = tokens()
    ours, theirs = model.logits(inputs, positions), original.logits(inputs, positions)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)
    check_packing(folder_model(tmp_path), device=_CPU)


def test_a_folders_padding_token_is_trained_like_any_other(tmp_path: Path) -> None:
    original = wide_model(tiny_shape("llama"))
    original.hf.config.pad_token_id = 3
    save_folder(original, tmp_path)
    model = build_model(folder_model(tmp_path), vocab_size=VOCAB, dtype=torch.float32)
    layout = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    filled(model, SafetensorsFolder(tmp_path, layout))
    inputs, positions = torch.full((1, 4), 3), torch.arange(4).unsqueeze(0)
    model(inputs, positions, inputs).sum().backward()
    gradient = dict(model.named_parameters())["model.embed_tokens.weight"].grad
    assert gradient is not None
    assert gradient[3].abs().max() > 0


def _config_only(path: Path, **values: Any) -> FolderModel:
    (path / "config.json").write_text(json.dumps(values))
    return folder_model(path)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"model_type": "xlnet", "vocab_size": VOCAB},
            "'xlnet' is not a known family .*test_model",
        ),
        ({}, "model_type '' is not a known family"),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            r"mixture-of-experts model \(num_local_experts=8.*expert parallelism",
        ),
        ({"model_type": "llama", "vocab_size": 5}, "embedding has 5 entries, the plan says 97"),
        ({"model_type": "llama", "vocab_size": "many"}, "transformers refuses it"),
    ],
)
def test_folders_that_cannot_be_trained_are_refused(
    tmp_path: Path, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        build_model(_config_only(tmp_path, **values), vocab_size=VOCAB, dtype=torch.float32)


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no Hugging Face model folder: it has no config\.json"):
        hf_config(folder_model(tmp_path), VOCAB)
    for text, said in (("{", "cannot be read"), ("[]", "not a JSON object")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match=said):
            hf_config(folder_model(tmp_path), VOCAB)


# --- shapes that cannot be -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "said"),
    [
        ("llama", {"hidden_size": 33}, r"hidden_size: 33 is not a multiple.*try: .*=36"),
        ("llama", {"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
        ("gpt2", {"num_key_value_heads": 2}, "gpt2 has no grouped-query attention"),
        ("gpt_neox", {"head_dim": 16}, r"head_dim: gpt_neox heads are .* wide: 8, not 16"),
        ("llama", {"rope_scaling": {"rope_type": "odd"}}, "llama refuses this shape"),
        ("llama", {"attention": "flash_attention_2"}, r"CUDA devices only.*model\.attention=sdpa"),
    ],
)
def test_impossible_shapes_are_refused_with_the_setting(
    family: str, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=f"(?s){said}"):
        build_model(tiny_shape(family, **changes), vocab_size=VOCAB, dtype=torch.float32)
