"""Encoders under their heads, and models of which a part is frozen, train alike on every engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch.nn import functional as F

from tests.contract import engine_cases
from tests.contract.engine_cases import Tensors, held_by, section
from tests.helpers.encoders import THREE, examples, tiny_encoder
from tests.helpers.models import VOCAB, tiny_shape
from tests.helpers.ranks import RankPool
from tests.helpers.two_stacks import SEQ2SEQ, tiny_two_stacks
from trainer.batch import IGNORED
from trainer.config.sections.adapters import (
    BottleneckAdapter,
    FrozenLayers,
    Ia3Adapter,
    LoraAdapter,
    PromptAdapter,
)
from trainer.config.sections.model import Model
from trainer.config.sections.training import PrecisionSection, Sgd
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.plain import PlainEngine
from trainer.models.build import build_model
from trainer.models.heads import HeadSpec
from trainer.models.starting import keep_frozen_values, starting_values
from trainer.optim.optimizers import make_optimizer
from trainer.records.fragment import MASTER

_STEPS = 3
_SGD = Sgd(kind="sgd", learning_rate=0.1, weight_decay=0.1, max_grad_norm=1.0, momentum=0.9)
_LORA = LoraAdapter(kind="lora", rank=4, alpha=8.0, dropout=0.0, targets=("all",))
_DORA = _LORA.model_copy(update={"kind": "dora"})
_FROZEN = FrozenLayers(kind="freeze", frozen=("*embed*", "*.layers.0.*"))
_IA3 = Ia3Adapter(kind="ia3", targets=("auto",), modules_to_save=("model.norm",))
_IA3_ALONE = Ia3Adapter(kind="ia3", targets=("auto",))
_FROZEN_T5 = FrozenLayers(kind="freeze", frozen=("shared.*", "*.block.0.*"))
_BOTTLENECK = BottleneckAdapter(kind="bottleneck", size=4, targets=("auto",))
_P_TUNING = PromptAdapter(kind="p_tuning", virtual_tokens=5)
_PREFIX = PromptAdapter(kind="prefix", virtual_tokens=5)
_WIDE = {"initializer_range": 0.1, "num_hidden_layers": 2}

CASES: dict[str, tuple[Model, HeadSpec | None]] = {
    "bert sequence": (tiny_encoder("bert", **_WIDE), THREE),
    "bert nsp": (tiny_encoder("bert", loss_chunk_tokens=3, **_WIDE), HeadSpec("nsp")),
    "modernbert mlm": (tiny_encoder("modernbert", **_WIDE), HeadSpec("mlm")),
    "llama lora, checkpointed": (
        tiny_shape("llama", adapter=_LORA, activation_checkpointing=True, **_WIDE),
        None,
    ),
    "llama dora, checkpointed": (
        tiny_shape("llama", adapter=_DORA, activation_checkpointing=True, **_WIDE),
        None,
    ),
    "bert dora": (tiny_encoder("bert", adapter=_DORA, **_WIDE), THREE),
    "llama frozen": (tiny_shape("llama", adapter=_FROZEN, tie_word_embeddings=True, **_WIDE), None),
    "llama ia3": (tiny_shape("llama", adapter=_IA3, **_WIDE), None),
    "bert bottleneck": (tiny_encoder("bert", adapter=_BOTTLENECK, **_WIDE), THREE),
    "llama p_tuning": (tiny_shape("llama", adapter=_P_TUNING, **_WIDE), None),
    "llama prefix": (tiny_shape("llama", adapter=_PREFIX, **_WIDE), None),
    "bert lora": (tiny_encoder("bert", adapter=_LORA, **_WIDE), THREE),
    "t5 ia3": (tiny_two_stacks("t5", adapter=_IA3_ALONE), SEQ2SEQ),
    "t5 bottleneck": (tiny_two_stacks("t5", adapter=_BOTTLENECK), SEQ2SEQ),
    "t5 frozen": (tiny_two_stacks("t5", adapter=_FROZEN_T5), SEQ2SEQ),
    "bart dora": (tiny_two_stacks("bart", adapter=_DORA, initializer_range=0.1), SEQ2SEQ),
}
_LEARNT = dict.fromkeys(  # so little is trained
    ("llama ia3", "llama p_tuning", "llama prefix", "t5 ia3", "t5 bottleneck", "bart dora"), 0.9995
)
_ALSO = ("llama lora, checkpointed", "llama dora, checkpointed")  # at every stage


@dataclass(frozen=True)
class Result:
    losses: list[float]
    fragments: list[Any]


def _model(case: str) -> Any:
    shape, head = CASES[case]
    model: Any = build_model(shape, vocab_size=VOCAB, dtype=torch.float32, head=head)  # type: ignore[call-overload]
    keep_frozen_values(model, shape, seed=1)
    return model


def _engine(world: World, case: str, stage: int | Literal["plain"]) -> Engine:
    precision = PrecisionSection(kind="fp32", accumulate_in="fp32")
    if stage == "plain":
        return PlainEngine(
            lambda: _model(case),
            lambda named: make_optimizer(_SGD, named),
            device=world.device,
            precision=precision,
            max_grad_norm=_SGD.max_grad_norm,
        )
    return DeepSpeedEngine(
        lambda: _model(case),
        lambda named: make_optimizer(_SGD, named),
        world=world,
        engine=section(stage),  # type: ignore[arg-type]
        precision=precision,
        optimizer=_SGD,
        micro_batch_size=2,
        gradient_accumulation_steps=1,
    )


def _fields(rank: int, size: int) -> dict[str, torch.Tensor]:
    """Four rows; the first, which rank 0 has, has no labelled token."""
    whole = examples().apart
    labels = whole["labels_RT"].clone()
    labels[0] = IGNORED
    rows = slice(rank * 4 // size, (rank + 1) * 4 // size)
    mine = {name: value[rows] for name, value in (whole | {"labels_RT": labels}).items()}
    mine["first_E"] = torch.arange(len(mine["inputs_RT"])) * mine["inputs_RT"].shape[1]
    return mine | {"classes_E": torch.tensor([0, 2, 1, 1])[rows]}


def _loss_sum(model: Any, kind: str | None, fields: dict[str, torch.Tensor]) -> torch.Tensor:
    labels = fields["labels_RT"]
    if kind is None:
        return -model(fields["inputs_RT"], fields["positions_RT"], labels).sum()
    if kind == "sequence":
        logits = model(fields, want="sequence")
        return F.cross_entropy(logits, fields["classes_E"], reduction="sum")
    if kind == "seq2seq":
        own = {"decoder_inputs_RS": fields["inputs_RT"], "labels_RS": labels}
        return -model(fields | own | {"decoder_documents_RS": fields["documents_RT"]}).sum()
    said = model(fields, want=kind)
    if kind == "nsp":
        follows = fields["classes_E"] % 2
        return F.cross_entropy(said[1], follows, reduction="sum") - said[0].sum()
    return -torch.as_tensor(said).sum()


def train(world: World, case: str, stage: int | Literal["plain"]) -> Result:
    engine = _engine(world, case, stage)
    shape, head = CASES[case]
    engine.load(starting_values(shape, _model(case), seed=1), step=0)
    fields = _fields(world.place.rank, world.place.world_size)
    losses = []
    for _ in range(_STEPS):
        loss = _loss_sum(engine.model, head and head.kind, fields) / 20
        engine.accumulate(loss, last=True)
        engine.step(lr=0.1)
        losses += world.sum([loss.item()])
    result = Result(losses, held_by(engine))
    engine.close()
    return result


def train_all(world: World, wanted: list[tuple[str, int]]) -> dict[tuple[str, int], Result]:
    return {(case, stage): train(world, case, stage) for case, stage in wanted}


def train_plain(world: World) -> dict[str, Result]:
    return {case: train(world, case, "plain") for case in CASES}


def _masters(results: list[Result]) -> Tensors:
    tensors = engine_cases.whole(part for result in results for part in result.fragments)
    return {key: values for key, values in tensors.items() if key[1] == MASTER}


def test_two_ranks_of_every_stage_train_as_one_process_does(ranks: RankPool) -> None:
    [plain] = ranks.run(1, train_plain)
    wanted = [(case, 3) for case in CASES] + [(case, stage) for case in _ALSO for stage in (1, 2)]
    first, second = ranks.run(2, train_all, wanted)
    for (case, stage), one in first.items():
        expected, both = plain[case], [one, second[case, stage]]
        assert one.losses == pytest.approx(expected.losses, rel=2e-6), (case, stage)
        assert expected.losses[-1] < expected.losses[0] * _LEARNT.get(case, 0.99), case
        theirs, ours = _masters([expected]), _masters(both)
        assert ours.keys() == theirs.keys(), (case, stage)
        for key, values in ours.items():
            torch.testing.assert_close(
                values, theirs[key], atol=2e-6, rtol=1e-4, msg=f"{case} {key}"
            )
    for case, (shape, _) in CASES.items():
        names = {name for name, *_ in _masters([plain[case]])}
        if isinstance(shape.adapter, LoraAdapter):
            outside = {n for n in names if ".lora_" not in n}
            assert all(n.startswith(("classifier", "bert.pooler")) for n in outside), case
        if isinstance(shape.adapter, Ia3Adapter):
            whole = {f"{name}.weight" for name in shape.adapter.modules_to_save}
            assert {n for n in names if ".ia3_l." not in n} == whole, case
        if isinstance(shape.adapter, FrozenLayers):
            parts = [pattern.strip("*") for pattern in shape.adapter.frozen]
            assert not any(part in n for n in names for part in parts)
