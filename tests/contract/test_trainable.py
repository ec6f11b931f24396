"""What a plan counts as trained is what the model trains, to the element."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from tests.helpers.configs import config
from tests.helpers.encoders import ENCODERS, THREE, tiny_encoder
from tests.helpers.models import FAMILIES, VOCAB, tiny_shape
from tests.helpers.two_stacks import SEQ2SEQ, tiny_two_stacks
from trainer.capacity.hf_names import parameters
from trainer.capacity.shape import Shape
from trainer.capacity.trainable import (
    num_new,
    num_trained,
    num_trained_layer_matrices,
    unmatched,
)
from trainer.config.sections.adapters import (
    Adapter,
    BottleneckAdapter,
    FrozenLayers,
    Ia3Adapter,
    LoraAdapter,
    PromptAdapter,
)
from trainer.engine.model_setup import trained
from trainer.errors import ConfigError
from trainer.model_shape import adaptation_of, of_an_encoder_decoder
from trainer.models.adapters import is_adapter
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.optim.groups import is_muon_matrix
from trainer.planning import shape_of as planned_shape

HEADS = {
    "sequence": THREE,
    "tokens": HeadSpec("tokens", ("a", "b")),
    "spans": HeadSpec("spans"),
    "mlm": HeadSpec("mlm"),
}
ALL = {"dropout": 0.0, "rank": 3, "alpha": 4.0}
ADAPTERS: dict[str, Any] = {
    "lora": LoraAdapter(kind="lora", targets=("all",), modules_to_save=("*[nN]orm*",), **ALL),
    "dora": LoraAdapter(kind="dora", targets=("all-linear",), **ALL),
    "ia3": Ia3Adapter(kind="ia3", targets=("auto",)),
    "bottleneck": BottleneckAdapter(kind="bottleneck", size=5, targets=("auto",)),
    "prompt": PromptAdapter(kind="prompt", virtual_tokens=5),
    "p_tuning": PromptAdapter(kind="p_tuning", virtual_tokens=5),
    "prefix": PromptAdapter(kind="prefix", virtual_tokens=5),
    "freeze": FrozenLayers(kind="freeze", frozen=("*.1.*", "*emb*")),
}


def shape_of(section: Any, head: HeadSpec | None) -> Shape:
    """As trainer/planning.py makes it."""
    fields = section.model_dump(include=set(Shape.__dataclass_fields__))
    if head is not None:
        fields |= {
            "num_key_value_heads": 4, "head_dim": 8, "tie_word_embeddings": True, "head": head.kind,
            "type_vocab_size": section.type_vocab_size or 0, "num_labels": len(head.labels),
        }  # fmt: skip
    return Shape(**fields | {"adaptation": adaptation_of(section.adapter)})


def model_of(section: Any, head: HeadSpec | None) -> Any:
    return build_model(section, vocab_size=VOCAB, dtype=torch.float32, head=head)  # type: ignore[call-overload]


TWO_STACKS: dict[str, dict[str, Any]] = {
    "t5": {},
    "t5 of its own output": {"gated": True, "tie_word_embeddings": False},
    "bart": {},
}


def two_stacks(case: str, **changes: Any) -> tuple[Shape, Any]:
    """(shape, model)."""
    section = tiny_two_stacks(case.split()[0], **(TWO_STACKS[case] | changes))
    fields = section.model_dump(include=set(Shape.__dataclass_fields__))
    fields |= of_an_encoder_decoder(section) | {"head": "seq2seq"}
    adaptation = adaptation_of(section.adapter)
    return Shape(**fields | {"adaptation": adaptation}), model_of(section, SEQ2SEQ)


@pytest.mark.parametrize("case", TWO_STACKS)
def test_names_of_two_stacks_are_those_of_the_model(case: str) -> None:
    shape, model = two_stacks(case)
    named = {n: tuple(p.shape) for n, p in model.named_parameters()}
    assert dict(parameters(shape)) == named


@pytest.mark.parametrize("kind", ["lora", "dora", "ia3", "bottleneck", "freeze"])
@pytest.mark.parametrize("case", TWO_STACKS)
def test_what_two_stacks_train_is_counted_to_the_element(case: str, kind: str) -> None:
    adapter = ADAPTERS[kind]
    if case.startswith("t5") and kind == "freeze":
        adapter = FrozenLayers(kind="freeze", frozen=("*.block.1.*", "shared.*"))
    shape, model = two_stacks(case, adapter=adapter)
    named = trained(model)
    assert num_trained(shape) == sum(p.numel() for _, p in named)
    assert num_new(shape) == sum(p.numel() for n, p in named if is_adapter(n))
    muon = [p.numel() for n, p in named if is_muon_matrix(n, p.shape)]
    assert num_trained_layer_matrices(shape) == sum(muon)
    assert list(unmatched(shape)) == []


@pytest.mark.parametrize(
    ("family", "adapter", "said"),
    [
        ("t5", "lora model.adapter.targets=[q_proj]", "'q_proj' matches nothing; there is layer.0"),
        ("t5", "lora model.adapter.targets=[relative_attention_bias]", "matches nothing"),
        ("bart", "ia3 model.adapter.targets=[wo]", "'wo' matches nothing; there is encoder_attn.k"),
        ("bart", "lora model.adapter.modules_to_save=[classifier]", "there is model.decoder.emb"),
        ("t5", "freeze model.adapter.frozen=[model.*]", "'model.*' matches nothing; there is shar"),
        ("t5", "prefix", "virtual tokens stand before a decoder's row, and t5 has two stacks"),
        ("t5", "prompt", "virtual tokens stand before a decoder's row, and t5 has two stacks"),
        ("bart", "p_tuning", "virtual tokens stand before a decoder's row, and bart has two st"),
    ],
)
def test_plans_refuse_what_two_stacks_have_not(family: str, adapter: str, said: str) -> None:
    kind, *more = adapter.split()
    model = "model=encoder_decoder_debug" if family == "t5" else "model=bart_base"
    wanted = config(
        model, "task=seq2seq", "data=examples", "data.sources.examples.paths=[a.csv]",
        "data.tokenizer.path=tokenizer", "data.packing=false", f"model/adapter={kind}", *more,
    )  # fmt: skip
    with pytest.raises(ConfigError) as seen:
        planned_shape(wanted, vocab_size_of_tokenizer=None)
    assert said in str(seen.value)
    assert [p.where.startswith("model.adapter") for p in seen.value.problems] == [True]


def cases() -> list[Any]:
    decoders = [(family, None) for family in FAMILIES]
    return decoders + [(family, head) for family in ENCODERS for head in HEADS]


@pytest.mark.parametrize(("family", "head"), cases())
def test_names_are_those_of_the_model(family: str, head: str | None) -> None:
    spec = HEADS[head] if head else None
    section: Any = tiny_encoder(family) if head else tiny_shape(family)
    named = {n: tuple(sorted(p.shape)) for n, p in model_of(section, spec).named_parameters()}
    ours = {name: tuple(sorted(dims)) for name, dims in parameters(shape_of(section, spec))}
    assert ours == named


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize(
    ("family", "head"), [case for case in cases() if case[1] in (None, "sequence", "mlm")]
)
def test_what_is_trained_is_counted_to_the_element(
    family: str, head: str | None, kind: str
) -> None:
    spec, adapter = HEADS[head] if head else None, ADAPTERS[kind]
    if isinstance(adapter, PromptAdapter) and (head or (family, kind) == ("mistral", "prefix")):
        return  # refused: tests/contract/test_prompts.py
    if family == "gpt2":
        names = {"modules_to_save": ("*.ln_*",), "frozen": ("*.1.*", "*.wte.*")}
        fields = type(adapter).model_fields
        adapter = adapter.model_copy(update={k: v for k, v in names.items() if k in fields})
    section: Any = (tiny_encoder if head else tiny_shape)(family, adapter=adapter)
    shape, model = shape_of(section, spec), model_of(section, spec)
    named = trained(model)
    assert num_trained(shape) == sum(p.numel() for _, p in named)
    assert num_new(shape) == sum(p.numel() for n, p in named if is_adapter(n))
    muon = [p.numel() for n, p in named if is_muon_matrix(n, p.shape)]
    assert num_trained_layer_matrices(shape) == sum(muon)
    assert list(unmatched(shape)) == []


def test_every_kind_of_adapter_is_counted() -> None:
    kinds = {k for one in get_args(get_args(Adapter)[0]) for k in _kinds(one)}
    assert kinds == {*ADAPTERS, "none", "qlora"}


def _kinds(section: Any) -> tuple[str, ...]:
    return get_args(section.model_fields["kind"].annotation)
