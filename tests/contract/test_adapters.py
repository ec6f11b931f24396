"""Adapters compute what peft says they compute, and only they are trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from tests.helpers.configs import values
from tests.helpers.encoders import THREE, examples, tiny_encoder
from tests.helpers.models import (
    VOCAB,
    filled,
    folder_model,
    hugging_face,
    tiny_shape,
    tokens,
    wide_model,
)
from trainer.config.explain import validate
from trainer.config.sections.adapters import (
    BottleneckAdapter,
    FrozenLayers,
    Ia3Adapter,
    LoraAdapter,
)
from trainer.engine.model_setup import settle, trained
from trainer.errors import ConfigError
from trainer.models.adapters import base_name, is_adapter, place_of
from trainer.models.build import build_model
from trainer.models.merged import adapted_values
from trainer.models.starting import fill_parameter, keep_frozen_values, starting_values
from trainer.records.fragment import Fragment

# peft asks transformers by a name that is on its way out
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
FAMILIES = ("llama", "gpt2", "gpt_neox")
CLOSE = {"atol": 2e-5, "rtol": 2e-5}


def lora(*targets: str, kind: Any = "lora") -> LoraAdapter:
    return LoraAdapter(kind=kind, rank=4, alpha=6.0, dropout=0.0, targets=targets or ("all",))


IA3 = Ia3Adapter(kind="ia3", targets=("auto",))
BOTTLENECK = BottleneckAdapter(kind="bottleneck", size=4, targets=("auto",))
ROOT = LoraAdapter(
    kind="lora", rank=4, alpha=6.0, rslora=True, dropout=0.0, targets=("all-linear",)
)
OF_IA3 = {  # as the paper says: keys, values, what the feed-forward's last matrix reads
    "llama": ["k_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "mlp.c_proj"],
    "gpt_neox": ["query_key_value", "dense_4h_to_h"],
}
KINDS = {"lora": lora(), "dora": lora(kind="dora"), "rslora": ROOT, "ia3": IA3}


def adapted(section: Any, seed: int = 3, head: Any = None) -> Any:
    model: Any = build_model(section, vocab_size=VOCAB, dtype=torch.float32, head=head)
    keep_frozen_values(model, section, seed=seed)
    settle(model, dtype=torch.float32, device=torch.device("cpu"))
    source = starting_values(section, model, seed=seed)
    for name, parameter in trained(model):
        fill_parameter(name, parameter, source)
    return model.eval()


def shaken(model: Any) -> Any:
    """As after some training: what is trained lies far from where it began."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, parameter in trained(model):
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


class Held:
    """A FragmentSource: what a model holds, as a checkpoint of it would."""

    def __init__(self, model: Any) -> None:
        self.values = {n: p.detach().clone() for n, p in trained(model)}

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        out.copy_(self.values[fragment.name].view(-1)[fragment.start : fragment.stop])


@pytest.mark.parametrize("kind", [*KINDS, "bottleneck"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_a_new_adapter_changes_nothing(family: str, kind: str, tmp_path: Path) -> None:
    base = wide_model(tiny_shape(family))
    hugging_face(base).save_pretrained(tmp_path)
    adapter = (KINDS | {"bottleneck": BOTTLENECK})[kind]
    section = folder_model(tmp_path).model_copy(update={"adapter": adapter})
    model = adapted(section)
    torch.testing.assert_close(model.logits(*tokens()), base.logits(*tokens()), **CLOSE)
    assert all(is_adapter(name) for name, _ in trained(model))
    learned = sum(p.numel() for _, p in trained(model))
    assert 0 < learned < sum(p.numel() for p in base.parameters()) / 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_an_adapter_and_its_merge_compute_what_pefts_do(
    family: str, kind: str, tmp_path: Path
) -> None:
    base = wide_model(tiny_shape(family))
    hugging_face(base).save_pretrained(tmp_path)
    section = folder_model(tmp_path).model_copy(update={"adapter": KINDS[kind]})
    model = shaken(adapted(section))
    ours, (inputs, positions) = model.logits(*tokens()), tokens()
    assert (ours - base.logits(inputs, positions)).abs().max() > 0.05
    names = sorted({place_of(n) for n, _ in trained(model)})
    config = peft.LoraConfig(
        r=4, lora_alpha=6.0, target_modules=names, use_dora=kind == "dora",
        use_rslora=kind == "rslora", fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    if kind == "ia3":
        config = peft.IA3Config(target_modules=OF_IA3[family], fan_in_fan_out=family == "gpt2",
                                feedforward_modules=OF_IA3[family][-1:])  # fmt: skip
    theirs = peft.get_peft_model(hugging_face(base), config)
    peft.set_peft_model_state_dict(theirs, {
        f"base_model.model.{n.replace('.default', '')}".replace("vector.weight", "vector"): p
        for n, p in trained(model)
    })  # fmt: skip
    said = theirs(input_ids=inputs, position_ids=positions).logits
    torch.testing.assert_close(ours, said, **CLOSE)
    merger = adapted_values(Held(model), model, section, seed=3)
    plain = build_model(tiny_shape(family), vocab_size=VOCAB, dtype=torch.float32)
    assert [n for n, _ in merger.layout] == [n for n, _ in plain.named_parameters()]
    merged = filled(plain, merger).eval()
    torch.testing.assert_close(merged.logits(inputs, positions), ours, **CLOSE)
    unloaded = dict(theirs.merge_and_unload().named_parameters())
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, unloaded[name], atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lengths_have_the_gradients_of_pefts_under_dropout(family: str, tmp_path: Path) -> None:
    base = wide_model(tiny_shape(family))
    hugging_face(base).save_pretrained(tmp_path)
    wanted = lora(kind="dora").model_copy(update={"dropout": 0.3})
    section = folder_model(tmp_path).model_copy(update={"adapter": wanted})
    model = shaken(adapted(section))
    names = sorted({place_of(n) for n, _ in trained(model)})
    config = peft.LoraConfig(
        r=4, lora_alpha=6.0, lora_dropout=0.3, target_modules=names, use_dora=True,
        fan_in_fan_out=family == "gpt2",
    )  # fmt: skip
    theirs = peft.get_peft_model(hugging_face(base), config)
    peft.set_peft_model_state_dict(theirs, {
        f"base_model.model.{n.replace('.default', '')}".replace("vector.weight", "vector"): p
        for n, p in trained(model)
    })  # fmt: skip
    inputs, positions = tokens()
    model.train()
    theirs.train()
    torch.manual_seed(8)
    ours = model.logits(inputs, positions)
    torch.manual_seed(8)
    said = theirs(input_ids=inputs, position_ids=positions).logits
    torch.testing.assert_close(ours, said, **CLOSE)
    for logits in (ours, said):
        torch.log_softmax(logits, -1)[..., 5].sum().backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters() if p.requires_grad}
    assert len(gradients) == 3 * len(names)
    for name, parameter in trained(model):
        torch.testing.assert_close(
            parameter.grad, gradients[f"base_model.model.{name}"], atol=1e-4, rtol=1e-4, msg=name
        )


def test_merged_values_do_not_depend_on_how_ranges_are_cut(tmp_path: Path) -> None:
    hugging_face(wide_model(tiny_shape("llama"))).save_pretrained(tmp_path)
    section = folder_model(tmp_path).model_copy(update={"adapter": lora(kind="dora")})
    model = shaken(adapted(section))
    merger = adapted_values(Held(model), model, section, seed=3)
    name, shape = "model.layers.0.mlp.up_proj.weight", (64, 32)
    whole, cut = torch.empty(64 * 32), torch.empty(64 * 32)
    merger.read(Fragment(name, "master", shape, 0, 64 * 32), whole)
    for start, stop in ((0, 5), (5, 33), (33, 1000), (1000, 64 * 32)):
        merger.read(Fragment(name, "master", shape, start, stop), cut[start:stop])
    torch.testing.assert_close(cut, whole, atol=1e-6, rtol=0)


def test_a_head_is_trained_beside_an_encoders_adapters() -> None:
    section = tiny_encoder("bert", adapter=lora("query", "value"))
    model = adapted(section, head=THREE)
    names = [n for n, _ in trained(model)]
    assert [n for n in names if ".lora_" not in n] == [
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight",
        "classifier.bias",
    ]  # fmt: skip
    assert sum(".lora_A." in n for n in names) == 2 * 3  # of three layers
    same = adapted(tiny_encoder("bert"), head=THREE)
    packed = examples().packed
    torch.testing.assert_close(model(packed, want="sequence"), same(packed, want="sequence"))
    frozen = {base_name(n): p for n, p in model.named_parameters() if not p.requires_grad}
    assert all(torch.equal(p, same.get_parameter(n)) for n, p in frozen.items())


def test_what_is_asked_for_is_trained_whole_beside_an_adapter() -> None:
    asked = lora("q_proj").model_copy(update={"modules_to_save": ("lm_head", "norm")})
    model = adapted(tiny_shape("llama", adapter=asked))
    outside = [n for n, _ in trained(model) if not is_adapter(n)]
    assert outside == ["model.norm.weight", "lm_head.weight"]


def test_frozen_layers_have_no_gradient_and_others_do() -> None:
    section = tiny_shape(
        "llama", adapter=FrozenLayers(kind="freeze", frozen=("*.layers.0.*", "*embed*"))
    )
    model = adapted(section)
    before = copy.deepcopy(dict(model.named_parameters()))
    model(*tokens(), tokens()[0]).sum().backward()
    for name, parameter in model.named_parameters():
        is_frozen = ".layers.0." in name or "embed" in name
        assert (parameter.grad is None) == is_frozen, name
        assert torch.equal(parameter, before[name])


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        (lora("query_key_value"), "'query_key_value' matches nothing; there is mlp.down_proj,"),
        (lora("q_proj", "*.attn.*"), r"'\*.attn.\*' matches nothing"),
        (Ia3Adapter(kind="ia3", targets=("q_lin",)), "'q_lin' matches nothing; there is mlp.down"),
        (
            BottleneckAdapter(kind="bottleneck", size=2, targets=("auto", "fc1")),
            "'fc1' matches nothing; there is mlp.down_proj",
        ),
        (
            lora().model_copy(update={"modules_to_save": ("classifier",)}),
            "modules_to_save: 'classifier' matches nothing; there is lm_head, model,",
        ),
        (FrozenLayers(kind="freeze", frozen=("transformer.*",)), "matches nothing; there is mod"),
        (FrozenLayers(kind="freeze", frozen=("*",)), "nothing would be trained"),
    ],
)  # fmt: skip
def test_patterns_that_match_nothing_are_refused_with_the_names_there_are(
    adapter: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        build_model(tiny_shape("llama", adapter=adapter), vocab_size=VOCAB, dtype=torch.float32)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ("model/adapter=prompt", "only the first would begin with them"),
        (
            "model/adapter=prefix task=classify data.packing=false",
            "a decoder's row, and cla",
        ),
        (
            "model/adapter=prefix data.packing=false model.activation_checkpointing=true",
            "forget the prefix's keys and values",
        ),
        ("model/adapter=qlora", "needs a CUDA device and was not run on GPUs yet"),
        ("model/adapter=lora model.adapter.rank=300", "rank 300 is more than the 256 columns"),
    ],
)
def test_adapters_that_cannot_work_are_refused(overrides: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        validate(values("model=llama_debug", *overrides.split()))
