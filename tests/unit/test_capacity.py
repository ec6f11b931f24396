"""Parameters, FLOPs and bytes by arithmetic; tests/contract holds them against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import config
from trainer.capacity.folder import MOST_OF, shape_of_folder, vocab_size_of_tokenizer
from trainer.capacity.memory import (
    Layout,
    MicroBatch,
    activations,
    checkpoint_bytes,
    memory_per_rank,
    moment_elements,
)
from trainer.capacity.peak import peak_tflops
from trainer.capacity.shape import (
    GATED,
    Family,
    Shape,
    flops_per_token,
    num_parameters,
)
from trainer.config.sections.model import ShapeModel
from trainer.errors import ModelError
from trainer.planning import shape_of

# Of the models' own papers and cards, in millions.
PUBLISHED = {
    "llama3_8b": 8_030.26, "llama3_70b": 70_553.71, "llama_1b": 1_235.81, "mistral_7b": 7_241.73,
    "gpt2": 124.44, "pythia_160m": 162.32, "qwen3_0_6b": 596.05, "qwen3_8b": 8_190.74,
    "gpt_neox_20b": 20_554.57,
}  # fmt: skip


def preset(name: str) -> Shape:
    return shape_of(config(f"model={name}"), vocab_size_of_tokenizer=None)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_as_many_parameters_as_published(name: str) -> None:
    assert num_parameters(preset(name)) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.01)


def small(family: Family, layers: int) -> Shape:
    heads = 4
    return Shape(
        family=family, vocab_size=64, hidden_size=64, intermediate_size=176,
        num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=2 if family in GATED else heads, head_dim=16,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip


def layout(stage: int | None, precision: Any = "bf16", **more: Any) -> Layout:
    given = {"world_size": 4, "accumulate_in_fp32": False, "optimizer": "adamw"} | more
    return Layout(stage=stage, precision=precision, **given)


BATCH = MicroBatch(rows=1, row_tokens=128, checkpointing=False, chunk_tokens=0)


@pytest.mark.parametrize(
    ("stage", "precision", "parameters", "gradients", "optimizer"),
    [
        (None, "fp32", 4, 4, 8), (None, "bf16", 2, 6, 12), (0, "fp32", 4, 4, 8),
        # ZeRO, sec. 3: 2 + 2 + 12 bytes a parameter; our gradients add their fp32 copy at the
        # update (4 / world), and DeepSpeed an fp32 master also in fp32.
        (1, "bf16", 2, 2 + 1, 3), (2, "bf16", 2, 0.5 + 1, 3), (3, "bf16", 0.5, 0.5 + 1, 3),
        (1, "fp32", 4, 4, 3), (2, "fp32", 4, 1, 3), (3, "fp32", 1, 1, 3),
    ],
)  # fmt: skip
def test_states_are_shared_as_zero_says(
    stage: int | None, precision: str, parameters: float, gradients: float, optimizer: float
) -> None:
    shape = small("llama", 8)
    count = num_parameters(shape)
    memory = memory_per_rank(shape, layout(stage, precision), batch=BATCH)
    assert memory.parameters == parameters * count
    assert memory.gradients == gradients * count
    assert memory.optimizer == optimizer * count


def test_fp32_accumulation_costs_its_bytes() -> None:
    shape = small("llama", 8)
    count = num_parameters(shape)
    wide = [
        memory_per_rank(shape, layout(s, accumulate_in_fp32=True), batch=BATCH).gradients
        for s in (1, 2, 3)
    ]
    assert wide == [6 * count, count, count]


def test_stage_3_keeps_small_parameters_whole() -> None:
    shape = small("llama", 2)
    threshold = {"persistence_threshold_elements": 65}
    plain, kept = (
        memory_per_rank(shape, layout(3, **more), batch=BATCH).parameters
        for more in ({}, threshold)
    )
    assert kept - plain == 2 * 64 * 5  # four norms in layers, one at the end; bf16


def test_offload_moves_bytes_to_the_host() -> None:
    shape = small("llama", 2)
    here = memory_per_rank(shape, layout(3), batch=BATCH)
    away = memory_per_rank(
        shape, layout(3, offload_optimizer="cpu", offload_parameters="cpu"), batch=BATCH
    )
    assert (away.parameters, away.gradients, away.optimizer) == (0, 0, 0)
    assert away.host == here.parameters + here.gradients + here.optimizer


def test_buckets_are_allocated_whole_and_twice_with_overlap() -> None:
    shape = small("llama", 2)
    count = num_parameters(shape)
    once = layout(2, bucket_elements=10_000_000, overlap_communication=False)
    twice = layout(2, bucket_elements=10_000_000)
    assert memory_per_rank(shape, once, batch=BATCH).buffers == 20_000_000 + 2 * count
    assert memory_per_rank(shape, twice, batch=BATCH).buffers == 40_000_000 + 2 * count


def test_checkpointing_keeps_one_layer_and_the_inputs_of_all() -> None:
    few, many = small("llama", 2), small("llama", 12)
    saved = MicroBatch(rows=1, row_tokens=128, checkpointing=True, chunk_tokens=0)
    more = activations(many, "bf16", batch=saved) - activations(few, "bf16", batch=saved)
    assert more == 10 * 128 * 64 * 2
    assert activations(many, "bf16", batch=saved) < activations(many, "bf16", batch=BATCH) / 5


def test_chunked_logits_and_eager_scores_are_counted() -> None:
    shape = small("llama", 1)
    chunked = MicroBatch(rows=1, row_tokens=128, checkpointing=False, chunk_tokens=16)
    eager = MicroBatch(
        rows=1, row_tokens=128, checkpointing=False, chunk_tokens=0, eager_attention=True
    )
    full = memory_per_rank(shape, layout(2), batch=BATCH)
    assert memory_per_rank(shape, layout(2), batch=chunked).logits < full.logits
    assert memory_per_rank(shape, layout(2), batch=eager).activations > full.activations


def test_checkpoints_hold_masters_and_moments() -> None:
    shape = small("llama", 2)
    count = num_parameters(shape)
    matrices = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 176)
    assert checkpoint_bytes(shape, layout(2)) == 12 * count
    assert checkpoint_bytes(shape, layout(2, optimizer="sgd")) == 8 * count
    assert checkpoint_bytes(shape, layout(2, optimizer="sgd", has_momentum=False)) == 4 * count
    assert moment_elements(shape, layout(2, optimizer="muon")) == 2 * count - matrices


def test_flops_follow_the_stated_formula() -> None:
    # performance anchor: 32.0 M matrix parameters, 217.1 MFLOP a token at 512 tokens a row
    shape = Shape(
        family="llama", vocab_size=16384, hidden_size=512, intermediate_size=1408,
        num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4, head_dim=64,
        max_position_embeddings=512, tie_word_embeddings=False,
    )  # fmt: skip
    assert flops_per_token(shape, 512) / 1e6 == pytest.approx(217.1, abs=0.1)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989.4), ("NVIDIA H100 PCIe", 756.0), ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA L40S", 362.0), ("NVIDIA L4", 121.0), ("NVIDIA A40", 149.7), ("Tesla T4", 65.0),
        ("NVIDIA B200", 2250.0), ("Something", None),
    ],
)  # fmt: skip
def test_peaks_are_found_by_name(name: str, tflops: float | None) -> None:
    assert peak_tflops(name) == tflops


# --- folders -------------------------------------------------------------------------------------

LLAMA = {
    "model_type": "llama", "vocab_size": 128, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip


def folder(tmp_path: Path, config: Any, *files: str) -> Path:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    for name in files:
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_has_the_shape_of_its_config(tmp_path: Path) -> None:
    path = folder(
        tmp_path, LLAMA | {"num_key_value_heads": 2, "attention_bias": True}, "a.safetensors"
    )
    shape = shape_of_folder(path, needs_weights=True)
    assert (shape.num_key_value_heads, shape.head_dim, shape.attention_bias) == (2, 8, True)


def test_an_old_gpt2_config_is_read(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12,
            "n_positions": 1024, "n_inner": None}  # fmt: skip
    shape = shape_of_folder(folder(tmp_path, gpt2), needs_weights=False)
    assert num_parameters(shape) == 124_439_808


@pytest.mark.parametrize(
    ("config", "files", "text"),
    [
        (LLAMA | {"model_type": "xlnet"}, (), "of the family xlnet, which is not known here; known "
         "are llama, mistral, qwen3, gpt2, gpt_neox, bert, roberta, distilbert, modernbert, t5, "
         "bart. Needed are its tensors"),
        (LLAMA | {"model_type": "mixtral", "num_local_experts": 8}, (),
         "is a mixture-of-experts model (mixtral), which is not supported: needed are"),
        (LLAMA | {"quantization_config": {}}, (), "holds quantised weights"),
        (LLAMA, (), "has no weights (*.safetensors); for new ones: model.weights=fresh"),
        (LLAMA, ("pytorch_model.bin",), "weights only as pickle (pytorch_model.bin)"),
        ({"a": 1}, (), "is no model folder: its config.json names no model_type"),
        ("{", (), "config.json cannot be read"),
        ({"model_type": "llama"}, ("a.safetensors",), "config.json has no "),
    ],
)  # fmt: skip
def test_a_folder_that_cannot_be_used_says_why(
    config: Any, files: tuple[str, ...], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError) as caught:
        shape_of_folder(folder(tmp_path, config, *files), needs_weights=True)
    assert text in str(caught.value)


def test_a_shape_written_out_has_the_limits_of_a_folders() -> None:
    most = {
        name: next(rule.le for rule in field.metadata if hasattr(rule, "le"))
        for name, field in ShapeModel.model_fields.items()
        if name in MOST_OF
    }
    assert most == MOST_OF


def test_a_folder_without_a_config_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is no model folder: it has no config\.json"):
        shape_of_folder(tmp_path, needs_weights=False)
    with pytest.raises(ModelError, match="is no model folder: it does not exist"):
        shape_of_folder(tmp_path / "x", needs_weights=False)


def test_a_tokenizers_vocabulary_is_read_with_its_added_tokens(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps({"model": {"vocab": {"a": 0, "b": 1}}, "added_tokens": [{"id": 7}]}))
    assert vocab_size_of_tokenizer(tmp_path) == 8
    assert vocab_size_of_tokenizer(tmp_path / "x") is None


def test_a_vocabulary_of_the_older_form_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "<|endoftext|>": 11}))
    (tmp_path / "merges.txt").touch()
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert vocab_size_of_tokenizer(tmp_path) == 12
    assert vocab_size_of_tokenizer(Path("~") / tmp_path.name) == 12
