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
from trainer.capacity.shape import Shape, flops_per_token, num_parameters, tensors
from trainer.config.explain import validate
from trainer.config.sections.model import EncoderShape
from trainer.errors import ConfigError
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.planning import shape_of

HEADS = (HeadSpec("mlm"), HeadSpec("nsp"), THREE, HeadSpec("tokens", ("O", "B")), HeadSpec("spans"))
# With the masked LM's head; of the models' own papers and cards, in millions.
PUBLISHED = {
    "bert_base": 109.51, "roberta_base": 124.70, "distilbert_base": 66.99, "modernbert_base": 149.66
}  # fmt: skip


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
    made = config(f"model={name}", "data.sequence_length=512")
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
    shape = shape_of(config("model=bert_base"), vocab_size_of_tokenizer=None)
    matrices = 12 * (4 * 768**2 + 2 * 768 * 3072)
    attention = 12 * 12 * 768 * 128
    trunk = 6 * matrices + attention
    assert flops_per_token(with_head(shape, THREE), 128) == trunk
    head = 768**2 + 30522 * 768
    masked = flops_per_token(with_head(shape, HeadSpec("mlm")), 128)
    assert masked == pytest.approx(trunk + 6 * 0.15 * head)


def test_rows_longer_than_robertas_usable_positions_are_refused() -> None:
    shape = shape_of(config("model=roberta_base"), vocab_size_of_tokenizer=None)
    assert (shape.max_position_embeddings, shape.max_row_tokens) == (514, 512)
    long = config("model=roberta_base", "data.sequence_length=513")
    with pytest.raises(ConfigError, match="rows of 513 tokens, but the model has 512 positions"):
        shape_of(long, vocab_size_of_tokenizer=None)


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
