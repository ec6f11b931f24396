"""Tensors of encoders as the arithmetic counts them, against Hugging Face's own classes on meta."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.configs import config, values
from tests.helpers.encoders import ENCODERS, THREE, tiny_encoder
from trainer.capacity.folder import shape_of_folder
from trainer.capacity.memory import Layout, MicroBatch, activations, memory_per_rank
from trainer.capacity.shape import (
    Shape,
    flops_per_token,
    num_layer_matrix_elements,
    num_parameters,
    tensors,
)
from trainer.config.explain import validate
from trainer.config.sections.model import EncoderShape
from trainer.engine.model_setup import settle
from trainer.errors import ConfigError
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.planning import shape_of

HEADS = (HeadSpec("mlm"), HeadSpec("nsp"), THREE, HeadSpec("tokens", ("O", "B")), HeadSpec("spans"))
# With the masked LM's head; of the models' own papers and cards, in millions.
PUBLISHED = {
    "bert_base": 109.51, "roberta_base": 124.70, "distilbert_base": 66.99, "modernbert_base": 149.66
}  # fmt: skip
CLASSIFY = (
    "task=classify", "data=examples", "data.sources.examples.paths=[a.csv]",
    "data.tokenizer.path=tokenizer",
)  # fmt: skip


def preset(name: str, *overrides: str) -> Shape:
    made = config(f"model={name}", *CLASSIFY, *overrides)
    return shape_of(made, vocab_size_of_tokenizer=None)


def with_head(shape: Shape, head: HeadSpec) -> Shape:
    return replace(shape, head=head.kind, num_labels=len(head.labels))


def dims_of(section: EncoderShape, head: HeadSpec) -> Counter[tuple[int, ...]]:
    size = section.vocab_size or 64
    model = build_model(section, vocab_size=size, dtype=torch.float32, head=head)
    return Counter(tuple(p.shape) for p in model.parameters())


def counted(shape: Shape) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for group in tensors(shape):
        found[group.dims] += group.copies
    return +found


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_tensor_of_a_preset_is_one_of_transformers(name: str) -> None:
    made = config(f"model={name}", *CLASSIFY)
    shape = shape_of(made, vocab_size_of_tokenizer=None)
    assert isinstance(made.model, EncoderShape)
    for head in HEADS if name == "bert_base" else (h for h in HEADS if h.kind != "nsp"):
        assert counted(with_head(shape, head)) == dims_of(made.model, head), head.kind
    published = num_parameters(with_head(shape, HeadSpec("mlm"))) / 1e6
    assert published == pytest.approx(PUBLISHED[name], abs=0.1)


@pytest.mark.parametrize("family", ENCODERS)
def test_a_folder_has_the_tensors_that_its_config_says(family: str, tmp_path: Path) -> None:
    section = tiny_encoder(family)
    for more in ({}, {"norm_bias": True, "attention_bias": True, "mlp_bias": True}):
        if more and family != "modernbert":
            continue
        model = build_model(section, vocab_size=97, dtype=torch.float32, head=THREE)
        hf_config: Any = model.hf.config
        for name, value in more.items():
            setattr(hf_config, name, value)
        hf_config.save_pretrained(tmp_path)
        shape = with_head(shape_of_folder(tmp_path, needs_weights=False), THREE)
        with torch.device("meta"):
            theirs = type(model.hf)(hf_config)
        assert counted(shape) == Counter(tuple(p.shape) for p in theirs.parameters())


def test_a_head_counts_for_the_tokens_that_meet_it() -> None:
    shape = preset("bert_base")
    matrices = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 12 * 768 * 128
    trunk = 6 * matrices + attention
    assert flops_per_token(with_head(shape, THREE), 128) == trunk
    head = 768**2 + 30522 * 768
    masked = flops_per_token(with_head(shape, HeadSpec("mlm")), 128)
    assert masked == pytest.approx(trunk + 6 * 0.15 * head)


def test_rows_longer_than_robertas_usable_positions_are_refused() -> None:
    shape = preset("roberta_base")
    assert (shape.max_position_embeddings, shape.max_row_tokens) == (514, 512)
    with pytest.raises(ConfigError, match="rows of 513 tokens, but the model has 512 positions"):
        preset("roberta_base", "data.sequence_length=513")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("model=bert_base model.type_vocab_size=null", "model.type_vocab_size: bert needs it"),
        ("model=roberta_base +model.local_attention=8", "roberta has no such setting and would"),
        ("model=distilbert_base model.norm_eps=1e-6", "distilbert's is 1e-12, and cannot be set"),
        (
            "model=bert_base model.vocab_size=8 model.pad_token_id=8",
            "8 is no entry of an embedding",
        ),
        ("model=modernbert_base model.hidden_size=36", "heads of an even width, not 3"),
        ("model=bert_base model.hidden_size=100", "100 is not a multiple of num_attention_heads"),
    ],
)
def test_shapes_that_cannot_be_are_refused(overrides: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(values(*overrides.split()))


def saved_by_autograd(family: str, layers: int, precision: str) -> int:
    """Bytes, of three rows of 32 tokens; as tests/contract/test_capacity.py counts them."""
    section = tiny_encoder(family, hidden_size=64, intermediate_size=176, num_hidden_layers=layers)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = build_model(section, vocab_size=97, dtype=dtype, head=HeadSpec("mlm"))
    settle(model, dtype=dtype, device=torch.device("cpu"))
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    fields = {
        "inputs_RT": torch.zeros(3, 32, dtype=torch.int64),
        "positions_RT": torch.arange(32).repeat(3, 1),
        "documents_RT": torch.ones(3, 32, dtype=torch.int64),
    }
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"),
    ):
        model(fields, want="hidden")
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("family", ENCODERS)
def test_a_layer_saves_as_much_as_autograd_says(family: Any, precision: Any) -> None:
    batch = MicroBatch(rows=3, row_tokens=32, checkpointing=False, chunk_tokens=0)
    few, many = (
        Shape(
            family=family, vocab_size=97, hidden_size=64, intermediate_size=176,
            num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=4, head_dim=16,
            max_position_embeddings=66, tie_word_embeddings=True, head="hidden",
        )
        for layers in (3, 5)
    )  # fmt: skip
    ours = activations(many, precision, batch=batch) - activations(few, precision, batch=batch)
    if precision == "autocast":  # its 16-bit copies of the weights count as parameters
        ours += 2 * (num_layer_matrix_elements(many) - num_layer_matrix_elements(few))
    assert ours == saved_by_autograd(family, 5, precision) - saved_by_autograd(family, 3, precision)


def test_a_head_without_a_vocabulary_takes_next_to_nothing() -> None:
    shape = preset("bert_base")
    layout = Layout(world_size=1, stage=None, precision="fp32", accumulate_in_fp32=False,
                    optimizer="adamw")  # fmt: skip
    batch = MicroBatch(rows=8, row_tokens=128, checkpointing=False, chunk_tokens=0)
    small, masked, whole = (
        memory_per_rank(with_head(shape, h), layout, batch=b).logits
        for h, b in (
            (THREE, batch),
            (HeadSpec("mlm"), batch),
            (HeadSpec("mlm"), replace(batch, row_tokens=1024)),
        )
    )
    assert small == 3 * 4 * 8 * 128 * 3
    assert masked > 4 * 30522 * 153  # logits of 15 % of 1,024 tokens
    assert whole > 3 * masked
