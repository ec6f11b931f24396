"""The arithmetic of trainer/capacity against transformers' own models and autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from launch.settings.choices import Folders
from tests.helpers.configs import config
from trainer.capacity.memory import MicroBatch, activations
from trainer.capacity.shape import (
    FAMILIES,
    GATED,
    Family,
    Shape,
    num_parameters,
    tensors,
)
from trainer.planning import shape_of

# Encoders have tests of their own, in tests/contract/test_encoder_capacity.py.
PRESETS = [
    name
    for name in Folders.find().choices("model")
    if name != "hf_folder" and config(f"model={name}").model.kind == "shape"
]


def preset(name: str) -> Shape:
    return shape_of(config(f"model={name}"), vocab_size_of_tokenizer=None)


def hf_config(shape: Shape) -> Any:
    if shape.family == "gpt2":
        return transformers.GPT2Config(
            vocab_size=shape.vocab_size, n_embd=shape.hidden_size, n_layer=shape.num_hidden_layers,
            n_head=shape.num_attention_heads, n_inner=shape.intermediate_size,
            n_positions=shape.max_position_embeddings, bos_token_id=None, eos_token_id=None,
            resid_pdrop=shape.dropout, attn_pdrop=shape.dropout, embd_pdrop=shape.dropout,
            tie_word_embeddings=shape.tie_word_embeddings,
        )  # fmt: skip
    class_ = {"llama": "LlamaConfig", "mistral": "MistralConfig", "qwen3": "Qwen3Config",
              "gpt_neox": "GPTNeoXConfig"}[shape.family]  # fmt: skip
    common = {
        "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_hidden_layers,
        "num_attention_heads": shape.num_attention_heads,
        "max_position_embeddings": shape.max_position_embeddings,
        "tie_word_embeddings": shape.tie_word_embeddings,
        "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    if shape.family in GATED:
        common |= {"num_key_value_heads": shape.num_key_value_heads, "head_dim": shape.head_dim}
    return getattr(transformers, class_)(**common)


@pytest.mark.parametrize("name", PRESETS)
def test_every_tensor_of_a_preset_is_one_of_transformers(name: str) -> None:
    shape = preset(name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config(shape))
    theirs: dict[tuple[int, ...], int] = {}
    for parameter in model.parameters():
        dims = tuple(parameter.shape)
        # GPT-2 keeps its matrices transposed.
        key = tuple(sorted(dims)) if shape.family == "gpt2" else dims
        theirs[key] = theirs.get(key, 0) + 1
    ours: dict[tuple[int, ...], int] = {}
    for group in tensors(shape):
        key = tuple(sorted(group.dims)) if shape.family == "gpt2" else group.dims
        ours[key] = ours.get(key, 0) + group.copies
    assert ours == theirs
    assert num_parameters(shape) == sum(p.numel() for p in model.parameters())


def small(family: Family, layers: int) -> Shape:
    heads = 4
    return Shape(
        family=family, vocab_size=64, hidden_size=64, intermediate_size=176,
        num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=2 if family in GATED else heads, head_dim=16,
        max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip


def saved_by_autograd(shape: Shape, precision: str, rows: int, row_tokens: int) -> int:
    model = AutoModelForCausalLM.from_config(hf_config(shape), attn_implementation="sdpa").train()
    model = model.bfloat16() if precision == "bf16" else model
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    ids = torch.zeros((rows, row_tokens), dtype=torch.int64)
    positions = torch.arange(row_tokens).repeat(rows, 1)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"),
    ):
        model.base_model(input_ids=ids, position_ids=positions, use_cache=False)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_saves_as_much_as_autograd_says(family: Family, precision: Any) -> None:
    batch = MicroBatch(rows=3, row_tokens=32, checkpointing=False, chunk_tokens=0)
    one, two = small(family, 1), small(family, 2)
    theirs = saved_by_autograd(two, precision, 3, 32) - saved_by_autograd(one, precision, 3, 32)
    ours = activations(two, precision, batch=batch) - activations(one, precision, batch=batch)
    if precision == "autocast":  # its 16-bit copies of the weights count as parameters
        matrices = (g for g in tensors(one) if len(g.dims) == 2 and "." in g.name)
        ours += sum(2 * g.elements for g in matrices if g.name.startswith(("self", "att", "mlp")))
    assert ours == theirs
