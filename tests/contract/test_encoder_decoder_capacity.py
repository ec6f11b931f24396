"""Encoder-decoders as the arithmetic counts them, against transformers' classes and autograd."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.configs import config, values
from tests.helpers.models import folder_model
from tests.helpers.two_stacks import SEQ2SEQ
from tests.helpers.two_stacks import tiny_two_stacks as tiny
from trainer.capacity.encoder_decoder import ANY_LENGTH
from trainer.capacity.folder import shape_of_folder
from trainer.capacity.memory import MicroBatch, activations
from trainer.capacity.shape import (
    Shape,
    flops_per_token,
    num_layer_matrix_elements,
    num_parameters,
    tensors,
)
from trainer.config.explain import validate
from trainer.config.sections.model import EncoderDecoderShape
from trainer.engine.model_setup import settle
from trainer.errors import ConfigError, ModelError
from trainer.models.build import build_model
from trainer.planning import shape_of

PUBLISHED = {"t5_small": 60.5, "t5_base": 222.9, "bart_base": 139.4}  # millions, of the papers
PAIRS = (
    "task=seq2seq", "data=examples", "data.sources.examples.paths=[a.csv]",
    "data.tokenizer.path=tokenizer", "data.packing=false",
)  # fmt: skip


def counted(shape: Shape) -> Counter[tuple[int, ...]]:
    found: Counter[tuple[int, ...]] = Counter()
    for group in tensors(shape):
        found[group.dims] += group.copies
    return +found


def built(section: Any, size: int) -> Any:
    return build_model(section, vocab_size=size, dtype=torch.float32, head=SEQ2SEQ)


@pytest.mark.parametrize("name", [*PUBLISHED, "encoder_decoder_debug"])
def test_every_tensor_of_a_preset_is_one_of_transformers(name: str) -> None:
    for more in ((), ("model.gated=true", "model.tie_word_embeddings=false"))[: 1 + ("t5" in name)]:
        made = config(f"model={name}", *PAIRS, *more)
        shape = shape_of(made, vocab_size_of_tokenizer=400)
        model = built(made.model, shape.vocab_size)
        assert counted(shape) == Counter(tuple(p.shape) for p in model.parameters())
        if more:
            assert any(key == "lm_head.weight" for key, _ in model.named_parameters())
        elif name in PUBLISHED:
            assert num_parameters(shape) / 1e6 == pytest.approx(PUBLISHED[name], abs=0.1)
            with torch.device("meta"):
                theirs = type(model.hf)(model.hf.config)
            assert num_parameters(shape) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_a_folder_has_the_shape_of_what_was_saved(family: str, tmp_path: Path) -> None:
    model = built(tiny(family), 97)
    model.hf.config.save_pretrained(tmp_path)
    shape = shape_of_folder(tmp_path, needs_weights=False)
    assert counted(shape) == Counter(tuple(p.shape) for p in model.parameters())
    assert (shape.num_hidden_layers, shape.num_decoder_layers) == (2, 3)
    assert shape.max_row_tokens == (ANY_LENGTH if family == "t5" else 64)


def test_t5_has_an_output_of_its_own_where_transformers_gives_it_one(tmp_path: Path) -> None:
    """By its config as Google wrote it, or as transformers 5 does; none where files lack it."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    T5ForConditionalGeneration(
        T5Config(vocab_size=64, tie_word_embeddings=False, **sizes)
    ).save_pretrained(tmp_path)
    file, section = tmp_path / "model.safetensors", folder_model(tmp_path)

    def has_own() -> bool:
        theirs = T5ForConditionalGeneration.from_pretrained(tmp_path)
        own = theirs.lm_head.weight.data_ptr() != theirs.shared.weight.data_ptr()
        shape = shape_of_folder(tmp_path, needs_weights=True)
        assert shape.tie_word_embeddings is not own
        names = {name for name, _ in built(section, 64).named_parameters()}
        assert ("lm_head.weight" in names) is own
        return bool(own)

    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is True
    assert not has_own()  # transformers tied it, and its file has no output
    both = load_file(file) | {"lm_head.weight": torch.randn(64, 16)}
    save_file(both, file, metadata={"format": "pt"})
    assert has_own()
    said = json.loads((tmp_path / "config.json").read_text()) | {"tie_word_embeddings": False}
    del said["scale_decoder_outputs"]
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert has_own()


def test_stacks_that_are_not_counted_are_refused(tmp_path: Path) -> None:
    built(tiny("bart"), 97).hf.config.save_pretrained(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"decoder_ffn_dim": 7}, "encoder_ffn_dim and decoder_ffn_dim differ"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is false, but BART's output"),
        ({"decoder_layers": 10**9}, "decoder_layers is 1000000000, not from 1 to 4,096"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said | changes))
        with pytest.raises(ModelError, match=message):
            shape_of_folder(tmp_path, needs_weights=False)


def test_flops_are_those_of_torchs_own_count() -> None:
    """Of a row of as many positions of source and target, forward and backward."""
    from torch.utils.flop_counter import FlopCounterMode

    section = tiny("t5", attention="eager")
    model = built(section, 97)
    settle(model, dtype=torch.float32, device=torch.device("cpu"))
    rows, length = 2, 32
    ones = torch.ones(rows, length, dtype=torch.int64)
    names = ("inputs_RT", "documents_RT", "decoder_inputs_RS", "decoder_documents_RS", "labels_RS")
    with FlopCounterMode(display=False) as counter:
        model(dict.fromkeys(names, ones)).sum().backward()
    shape = _shape(section)
    ours = flops_per_token(shape, length) * 2 * rows * length
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.001)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("model=t5_small model.gated=null", "model.gated: t5 needs it"),
        ("model=t5_small +model.max_position_embeddings=9", "t5 has no such setting and would"),
        ("model=bart_base +model.gated=true", "bart has no such setting and would leave it unused"),
        ("model=bart_base model.head_dim=32", "hidden_size / num_attention_heads wide: 64, not 32"),
        ("model=bart_base model.tie_word_embeddings=false", "bart's output is its embedding"),
        ("model=t5_small model.vocab_size=8 model.pad_token_id=8", "8 is no entry of an embedding"),
        ("model=t5_small model.relative_attention_max_distance=16", "already begins at 16"),
        ("model=bart_base model.hidden_size=100", "100 is not a multiple of num_attention_heads"),
    ],
)
def test_shapes_that_cannot_be_are_refused(overrides: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(values(*overrides.split()))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("model=t5_small",), "t5 is an encoder-decoder, which makes texts from texts, and causal"),
        (("model=t5_small", "task=tag", *PAIRS[1:]), "t5 is an encoder-decoder, .* and tag does"),
        (
            ("task=span_denoising", "data/tokenizer=pretrained", "data.tokenizer.path=t"),
            "llama is no encoder-decoder .t5, bart., and span_denoising needs one",
        ),
        (("model=bert_base", *PAIRS), "bert is an encoder, which has no next token to predict"),
        (("model=bart_base", *PAIRS[:-1]), "bart's positions are places of a row"),
        (("model=bart_base", *PAIRS, "data.sequence_length=1025"), "has 1,024 positions"),
        (
            ("model=t5_small", "task=span_denoising"),
            "a tokenizer that is trained here has no sentinels, which span_denoising needs",
        ),
    ],
)
def test_what_a_family_cannot_do_is_refused(overrides: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        shape_of(config(*overrides), vocab_size_of_tokenizer=None)


def saved_by_autograd(section: EncoderDecoderShape, precision: str) -> int:
    """Bytes, of three rows of 24 and 16 positions; as tests/contract/test_capacity.py counts."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model: Any = build_model(section, vocab_size=97, dtype=dtype, head=SEQ2SEQ)
    settle(model, dtype=dtype, device=torch.device("cpu"))
    known = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    source, target = (torch.ones(3, n, dtype=torch.int64) for n in (24, 16))
    fields = {
        "inputs_RT": source,
        "documents_RT": source,
        "decoder_inputs_RS": target,
        "decoder_documents_RS": target,
    }
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"),
    ):
        model._decoded(fields)
    return sum(size for size, _ in seen.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
@pytest.mark.parametrize("family", ["t5", "t5 gated", "bart"])
def test_layers_save_as_much_as_autograd_says(family: str, precision: Any) -> None:
    changes = {"gated": True} if family == "t5 gated" else {}
    few = tiny(family.split()[0], **changes)
    many = few.model_copy(update={"num_hidden_layers": 4, "num_decoder_layers": 6})
    theirs = saved_by_autograd(many, precision) - saved_by_autograd(few, precision)
    batch = MicroBatch(rows=3, row_tokens=24, target_tokens=16, checkpointing=False, chunk_tokens=0)
    shapes = [_shape(section) for section in (few, many)]
    small, large = (activations(shape, precision, batch=batch) for shape in shapes)
    if precision == "autocast":  # its 16-bit copies of the weights count as parameters
        matrices = [num_layer_matrix_elements(shape) for shape in shapes]
        large += 2 * (matrices[1] - matrices[0])
    assert large - small == theirs


def _shape(section: EncoderDecoderShape) -> Shape:
    said = section.model_dump(include=set(Shape.__dataclass_fields__))
    said |= {"max_position_embeddings": 64, "num_key_value_heads": section.num_attention_heads}
    said |= {"gated": bool(section.gated), "relative_attention_num_buckets": 32, "head": "seq2seq"}
    return Shape(**said)
