"""The real models under ZeRO: what chunks, ties, checkpointing and packing must not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest
import torch

from tests.contract import engine_cases
from tests.contract.engine_cases import Tensors, held_by, section
from tests.helpers.models import VOCAB, tiny_shape
from tests.helpers.ranks import RankPool
from trainer.batch import IGNORED, TokenBatch
from trainer.config.sections.training import PrecisionSection, Sgd
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.engine.deepspeed import DeepSpeedEngine
from trainer.engine.plain import PlainEngine
from trainer.models.build import build_model
from trainer.models.init import InitialValues, initial_rules
from trainer.models.language_model import LanguageModel
from trainer.optim.optimizers import make_optimizer
from trainer.records.fragment import MASTER, Fragment
from trainer.tasks.causal_lm import CausalLm

_STEPS, _ROWS, _LENGTH = 3, 4, 12
_SGD = Sgd(kind="sgd", learning_rate=0.1, weight_decay=0.1, max_grad_norm=1.0, momentum=0.9)


@dataclass(frozen=True, kw_only=True)
class Case:
    engine: Literal["plain", 1, 2, 3]
    family: str = "llama"
    tied: bool = False
    chunk: int = 0
    checkpointed: bool = False
    precision: Literal["fp32", "bf16", "autocast"] = "fp32"


@dataclass(frozen=True)
class Result:
    losses: list[float]
    scores: dict[str, float]
    fragments: list[tuple[Fragment, torch.Tensor]]


def _model(case: Case) -> LanguageModel:
    shape = tiny_shape(
        case.family,
        tie_word_embeddings=case.tied,
        loss_chunk_tokens=case.chunk,
        activation_checkpointing=case.checkpointed,
        initializer_range=0.1,
    )
    return build_model(shape, vocab_size=VOCAB, dtype=torch.float32)


def _engine(world: World, case: Case) -> Engine:
    precision = PrecisionSection(kind=case.precision, accumulate_in="fp32")
    if case.engine == "plain":
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
        engine=section(case.engine),
        precision=precision,
        optimizer=_SGD,
        micro_batch_size=_ROWS // world.place.world_size,
        gradient_accumulation_steps=1,
    )


def _rows(step: int, rank: int, size: int) -> TokenBatch:
    """Two documents a row; the first row has no terms, others lack some."""
    draw = torch.Generator().manual_seed(step)
    inputs = torch.randint(VOCAB, (_ROWS, _LENGTH), generator=draw)
    labels = torch.randint(VOCAB, (_ROWS, _LENGTH), generator=draw)
    labels[:, 4] = IGNORED
    labels[0] = IGNORED
    positions = torch.cat([torch.arange(5), torch.arange(_LENGTH - 5)]).expand(_ROWS, _LENGTH)
    mine = slice(rank * _ROWS // size, (rank + 1) * _ROWS // size)
    terms = int((labels[mine] != IGNORED).sum())
    return TokenBatch(inputs[mine], labels[mine], positions[mine], (), terms, inputs[mine].numel())


def train(world: World, wanted: list[Case]) -> list[Result]:
    results = []
    for case in wanted:
        engine, task = _engine(world, case), CausalLm()
        engine.load(InitialValues(initial_rules(_model(case)), seed=1), step=0)
        losses = []
        for step in range(_STEPS):
            batch = _rows(step, world.place.rank, world.place.world_size)
            (weight,) = world.sum([batch.terms])
            loss = task.loss_sum(engine.model, batch) / weight
            engine.accumulate(loss, last=True)
            engine.step(lr=0.1)
            losses += world.sum([loss.item()])
        scores = task.score(engine.model, batch)
        sums = dict(zip(scores, world.sum(list(scores.values())), strict=True))
        results.append(Result(losses, sums, held_by(engine)))
        engine.close()
    return results


def _masters(results: list[Result]) -> Tensors:
    tensors = engine_cases.whole(part for result in results for part in result.fragments)
    return {key: values for key, values in tensors.items() if key[1] == MASTER}


_MODELS = [
    {"chunk": 5},
    {"chunk": 5, "tied": True, "checkpointed": True},
    {"family": "gpt2", "tied": True, "chunk": 5},
    {"family": "gpt_neox", "checkpointed": True},
    {"family": "qwen3", "tied": True},
    {"family": "mistral", "chunk": 5},
]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_two_ranks_train_as_one_process_does(ranks: RankPool, precision: str) -> None:
    """`plain` computes full logits and keeps activations: the options must not change numbers."""
    models = _MODELS if precision == "fp32" else _MODELS[:2]
    plain = [
        Case(
            engine="plain",
            family=m.get("family", "llama"),
            tied=m.get("tied", False),
            precision=precision,
        )  # type: ignore[arg-type]
        for m in models
    ]
    stages = (1, 2, 3) if precision == "fp32" else (2, 3)
    wanted = [Case(engine=s, precision=precision, **m) for s in stages for m in models]  # type: ignore[arg-type]
    references = [r for (r,) in zip(*ranks.run(1, train, plain), strict=True)]
    got = list(zip(*ranks.run(2, train, wanted), strict=True))
    # Measured: fp32 8e-7 (loss) and 1e-7 (weights); bf16 1e-3 and 3e-4; autocast 1e-3 and 2e-4.
    loss_bound, weight_bound = (2e-6, 1e-6) if precision == "fp32" else (5e-3, 1e-3)
    for case, results, reference in zip(wanted, got, references * len(stages), strict=True):
        pairs = zip(results[0].losses, reference.losses, strict=True)
        assert max(abs(a - b) for a, b in pairs) <= loss_bound, case
        ours, theirs = _masters(list(results)), _masters([reference])
        assert ours.keys() == theirs.keys(), case
        apart = max(float((ours[k] - theirs[k]).abs().max()) for k in ours)
        assert apart <= weight_bound, case
        assert results[0].scores["terms"] == reference.scores["terms"]
        assert results[0].scores["loss"] == pytest.approx(reference.scores["loss"], rel=1e-2)
