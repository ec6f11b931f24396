"""The canonical engine: one number of ranks, another, or one after the other: the same bits.

The model has 8 blocks, so that slices of 2 and 3 ranks end in other places; rows are few, so that
clipping, dropout, a batch that does not divide and ranks without rows all happen.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests.contract.engine_cases import whole
from tests.distributed.test_training import StopAt
from tests.helpers.ranks import RankPool
from tests.helpers.tiny_run import tiny_run
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.engine import canonical
from trainer.engine.canonical import CanonicalEngine
from trainer.engine.flat_slices import BLOCK, block_squares, tree_sum
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import read_plan
from trainer.records.fragment import Fragment
from trainer.records.run_files import RunFiles
from trainer.reports import StepReport

_STEPS = 10
_MODEL = (
    "model.hidden_size=64",
    "model.intermediate_size=128",
    "model.head_dim=16",
    "evals=none",
    f"steps.total={_STEPS}",
    "optimizer.max_grad_norm=0.5",  # every step is clipped
)
_CANONICAL = ("engine=canonical", "engine.bucket_elements=30_000")
_SIX = ("batch.global_batch_size=6", "batch.micro_batch_size=1")
_UNEVEN = ("batch.global_batch_size=7", "batch.micro_batch_size=2")  # the fourth has one row
# name -> settings; each is trained on 1, 2 and 3 ranks
ALIKE = {
    "fp32": (*_CANONICAL, *_SIX, "precision=fp32"),
    "bf16": (*_CANONICAL, *_UNEVEN, "precision=bf16", "model.activation_checkpointing=true"),
    "autocast": (
        *(*_CANONICAL, *_UNEVEN, "precision=autocast"),
        *("data.packing=false", "optimizer=sgd", "optimizer.learning_rate=0.1"),
    ),
}
# what the first test would tell from "fp32"; each is trained on 2 and 3 ranks
OTHERS = {
    "zero2": ("engine=zero2", *_SIX, "precision=fp32"),
    "added by rank": ALIKE["fp32"],
    "norm by rank": ALIKE["fp32"],
}


@dataclass(frozen=True)
class Wanted:
    root: Path
    attempt: int = 1
    until: int = _STEPS
    fault: str = ""


@dataclass
class Seen:
    """On one rank."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    fragments: list[tuple[Fragment, torch.Tensor]] = field(default_factory=list)


class AddsByRank(CanonicalEngine):
    """A planted fault: what the ranks bring in one micro-step is added up first."""

    def _add(self, shards: torch.Tensor, total: torch.Tensor) -> None:
        super()._add(shards.sum(0, keepdim=True), total)


class NormByRank(CanonicalEngine):
    """A planted fault: each rank adds up the squares of its slice in fp32."""

    def _squares(self) -> torch.Tensor:
        squares = torch.zeros_like(super()._squares())
        squares[self._rank] = self._sum.square().sum().double()
        return squares


FAULTS = {"added by rank": AddsByRank, "norm by rank": NormByRank}


class Watch:
    def __init__(self, seen: Seen) -> None:
        self._seen = seen

    def on_step(self, report: StepReport) -> None:
        self._seen.losses.append(report.loss)
        self._seen.norms.append(report.grad_norm)

    def __getattr__(self, name: str) -> object:
        return lambda *_: None


def train_all(world: World, wanted: list[Wanted]) -> list[Seen]:
    return [_train(world, each) for each in wanted]


def _train(world: World, wanted: Wanted) -> Seen:
    run, stop = RunFiles(wanted.root), StopAt()
    plan = read_plan(run.attempt(wanted.attempt).plan)
    canonical.CanonicalEngine = FAULTS.get(wanted.fault, CanonicalEngine)  # type: ignore[misc]
    job, state = build_job(plan, world, run=run, stop=stop, startup=StartUp())
    if wanted.until < _STEPS:
        stop.left = wanted.until - state.step
    seen = Seen()
    object.__setattr__(job, "observers", (Watch(seen),))
    fit(job, state)
    seen.fragments = [(h.fragment, h.values.clone()) for h in job.engine.fragments()]
    job.stream.close()
    wind_up(job, state.step)
    return seen


@dataclass(frozen=True)
class Run:
    """Of one world."""

    losses: list[float]
    norms: list[float]
    bits: str  # of all masters and moments


def _together(ranks: list[Seen]) -> Run:
    state = whole(part for seen in ranks for part in seen.fragments)
    digest = hashlib.sha256()
    for key in sorted(state):
        digest.update(repr(key).encode() + state[key].numpy().tobytes())
    assert all(seen.losses == ranks[0].losses for seen in ranks)
    return Run(ranks[0].losses, ranks[0].norms, digest.hexdigest())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("canonical")


def _plan(folder: Path, name: str, world: int, *settings: str, attempt: int = 1) -> Path:
    overrides = (*_MODEL, *settings, f"resources.ranks_per_node={world}")
    return tiny_run(folder, overrides, attempt=attempt, name=name).root


@pytest.fixture(scope="module")
def runs(ranks: RankPool, folder: Path) -> dict[tuple[str, int], Run]:
    found = {}
    for world in (1, 2, 3):
        mine = ALIKE | (OTHERS if world > 1 else {})
        wanted = [
            Wanted(_plan(folder, f"{name.replace(' ', '-')}-{world}", world, *settings), fault=name)
            for name, settings in mine.items()
        ]
        by_rank = ranks.run(world, train_all, wanted)
        for name, *seen in zip(mine, *by_rank, strict=True):
            found[name, world] = _together(seen)
    return found


@pytest.mark.parametrize("name", ALIKE)
def test_any_number_of_ranks_gives_the_same_bits(
    runs: dict[tuple[str, int], Run], name: str
) -> None:
    alone = runs[name, 1]
    assert len(alone.losses) == _STEPS
    assert alone.losses[-1] < alone.losses[0]
    for world in (2, 3):
        assert runs[name, world].bits == alone.bits
        assert runs[name, world].norms == alone.norms
        assert runs[name, world].losses == pytest.approx(alone.losses, rel=1e-14)  # added in fp64


def test_every_step_was_clipped(runs: dict[tuple[str, int], Run]) -> None:
    assert min(runs["fp32", 1].norms) > 0.5


@pytest.mark.parametrize("name", OTHERS)
def test_another_order_gives_other_bits(runs: dict[tuple[str, int], Run], name: str) -> None:
    assert runs[name, 2].losses == pytest.approx(runs["fp32", 1].losses, abs=1e-4)
    assert len({runs["fp32", 1].bits, runs[name, 2].bits, runs[name, 3].bits}) == 3


def test_a_run_goes_on_with_other_ranks_bit_for_bit(
    ranks: RankPool, folder: Path, runs: dict[tuple[str, int], Run]
) -> None:
    """2, then 3, then 1, through checkpoints."""
    names, losses = ("fp32", "bf16"), dict[str, list[float]]()
    for attempt, (world, until) in enumerate(((2, 4), (3, 7), (1, _STEPS)), 1):
        wanted = [
            Wanted(_plan(folder, f"{n}-moved", world, *ALIKE[n], attempt=attempt), attempt, until)
            for n in names
        ]
        by_rank = ranks.run(world, train_all, wanted)
        for name, *seen in zip(names, *by_rank, strict=True):
            ended = _together(seen)
            losses.setdefault(name, []).extend(ended.losses)
            if until == _STEPS:
                assert ended.bits == runs[name, 1].bits
    for name in names:
        assert losses[name] == pytest.approx(runs[name, 1].losses, rel=1e-14)


def test_one_rank_equals_plain_where_nothing_is_clipped(ranks: RankPool, folder: Path) -> None:
    """The two add up the squares of a norm otherwise; all else is the same."""
    settings = [
        (engine, *_SIX, f"precision={precision}", "optimizer.max_grad_norm=0", *more)
        for engine in ("engine=plain", "engine=canonical")
        for precision, more in (("fp32", ()), ("bf16", ()), ("fp32", ("optimizer=sgd",)))
    ]
    wanted = [Wanted(_plan(folder, f"plain-{i}", 1, *s)) for i, s in enumerate(settings)]
    found = [_together([seen]) for seen in ranks.run(1, train_all, wanted)[0]]
    for plain, ours in zip(found[:3], found[3:], strict=True):
        assert ours.bits == plain.bits
        assert ours.losses == plain.losses


def test_squares_of_a_block_depend_on_nothing_beside_it() -> None:
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(40 * BLOCK, generator=draw) * 1e3
    alone = torch.cat([block_squares(block) for block in torch.split(values, BLOCK)])
    assert torch.equal(block_squares(values), alone)
    assert torch.equal(block_squares(values[3 * BLOCK : 29 * BLOCK]), alone[3:29])
    exact = values.double().square().sum().item()
    assert tree_sum(alone).item() == pytest.approx(exact, rel=1e-12)


def test_a_sum_of_any_number_of_values() -> None:
    for count in (1, 2, 3, 5, 64, 100):
        assert tree_sum(torch.arange(1.0, count + 1)).item() == count * (count + 1) / 2
