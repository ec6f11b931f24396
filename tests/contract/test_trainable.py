"""What a plan counts as trained is what the model trains, to the element."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from tests.helpers.encoders import ENCODERS, THREE, tiny_encoder
from tests.helpers.models import FAMILIES, VOCAB, tiny_shape
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
from trainer.model_shape import adaptation_of
from trainer.models.adapters import is_adapter
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.optim.groups import is_muon_matrix

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
