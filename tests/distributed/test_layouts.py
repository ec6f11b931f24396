"""The equality suite: every layout of a run against an independent loop over the same rows."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.verify.shrink import shrunk
from tests.contract.engine_cases import AveragesOverMicroSteps, AveragesOverRanks
from tests.helpers.configs import config
from tests.helpers.ranks import RankPool
from tests.helpers.task_cases import case_plan
from trainer.data.prepare import prepare
from trainer.dist.world import World
from trainer.plan import RunPlan
from trainer.planning import make_plan
from trainer.records.prepared import prepared_vocab_size
from trainer.records.token_store import read_manifest
from trainer.verify.compare import Verdict, bounds_of, compare, reference_for, reference_from
from trainer.verify.layouts import Layout, plan_of, run_layout

STEPS = 20
WORLDS = (1, 2, 3)
ACCUMULATIONS = (1, 2, 4)
UNEVEN = 3  # on three ranks: 27 rows where the step has 24
FAULTS = {
    "forgets that DeepSpeed averages over ranks": AveragesOverRanks,
    "lets DeepSpeed divide by the micro-steps": AveragesOverMicroSteps,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


def base_plan(home: Path, *overrides: str, steps: int = STEPS, fp32: bool = True) -> RunPlan:
    small = shrunk(config("engine=zero2", *overrides), home, name="layouts", steps=steps, fp32=fp32)
    stores = prepare(small, log=lambda line: None)
    return make_plan(
        small,
        attempt=1,
        run_id="layouts",
        stores=stores,
        device="cpu",
        cores=1,
        vocab_size_of_tokenizer=read_manifest(Path(stores[0].path)).vocab_size,
    )


def run_all(
    world: World, plan: RunPlan, layouts: Sequence[Layout], folder: Path, fault: str = ""
) -> list[list[float]]:
    if fault:  # this process is forked for one world: the fault goes with it
        module = importlib.import_module("trainer.engine.deepspeed")
        module.DeepSpeedEngine = FAULTS[fault]  # type: ignore[attr-defined]
    return [run_layout(world, plan, layout, folder=folder) for layout in layouts]


def trained(
    ranks: RankPool, plan: RunPlan, layouts: Sequence[Layout], folder: Path, fault: str = ""
) -> dict[Layout, list[float]]:
    """The losses of every layout; each world is started once."""
    found: dict[Layout, list[float]] = {}
    for world_size in sorted({layout.world_size for layout in layouts}):
        mine = [layout for layout in layouts if layout.world_size == world_size]
        losses = ranks.run(world_size, run_all, plan, mine, folder, fault)[0]
        found |= dict(zip(mine, losses, strict=True))
    return found


def judged(
    plan: RunPlan, losses: dict[Layout, list[float]], folder: Path, **reference: Any
) -> list[Verdict]:
    bounds = bounds_of(plan)
    return [
        compare(reference[f"packing_{layout.packing}"], layout, found, folder=folder, bounds=bounds)
        for layout, found in losses.items()
    ]


def grid(stages: Sequence[int], *, packing: Sequence[bool] = (True, False)) -> list[Layout]:
    layouts = [
        Layout(f"zero{stage}", world, accumulation, packed)  # type: ignore[arg-type]
        for stage in stages
        for world in WORLDS
        for accumulation in ACCUMULATIONS
        for packed in packing
    ]
    uneven = [Layout(f"zero{stage}", 3, UNEVEN, packing[0]) for stage in stages]  # type: ignore[arg-type]
    plain = [Layout("plain", 1, a, packed) for a in ACCUMULATIONS for packed in packing]
    return plain + layouts + uneven


def said(verdicts: Sequence[Verdict]) -> str:
    return "\n".join(f"{v.layout.name}: {v.loss:.1e} {v.weights:.1e}" for v in verdicts)


@pytest.mark.parametrize("name", ["classify", "seq2seq_t5"])
def test_a_task_of_its_own_is_proved_on_its_own_data(
    name: str, ranks: RankPool, home: Path, tmp_path: Path
) -> None:
    given = case_plan(home / "given", name, ("data.packing=true",)).config
    small = shrunk(given, home, name=name, steps=4, fp32=True)
    assert small.task == given.task
    stores = prepare(small, log=lambda line: None)
    plan = make_plan(
        small,
        attempt=1,
        run_id=name,
        stores=stores,
        device="cpu",
        cores=1,
        vocab_size_of_tokenizer=prepared_vocab_size(
            Path(stores[0].path), data=small.data.model_dump(mode="json")
        ),
    )
    plain, *others = [
        Layout("plain", 1, 1, True), Layout("zero2", 2, 2, True), Layout("zero3", 2, 1, True)
    ]  # fmt: skip
    losses = trained(ranks, plan, [plain, *others], tmp_path)
    alone = reference_from(plain, losses.pop(plain), folder=tmp_path)
    verdicts = judged(plan, losses, tmp_path, packing_True=alone)
    assert [v.layout for v in verdicts] == others
    assert all(v.passed for v in verdicts), said(verdicts)
    assert alone.losses[-1] != alone.losses[0]


def test_adamw_trains_alike_on_every_layout(ranks: RankPool, home: Path, tmp_path: Path) -> None:
    """Stages 0 to 3 x worlds 1, 2, 3 x accumulation 1, 2, 4 x packed or not: 20 steps in fp32."""
    plan = base_plan(home, "optimizer=adamw")
    losses = trained(ranks, plan, grid(range(4)), tmp_path)
    packed = reference_for(plan, packing=True)
    unpacked = reference_for(plan, packing=False)
    assert packed.losses[-1] < packed.losses[0] - 0.1, "nothing was learnt: nothing is compared"
    verdicts = judged(plan, losses, tmp_path, packing_True=packed, packing_False=unpacked)
    print(said(verdicts))
    assert all(v.passed for v in verdicts), said([v for v in verdicts if not v.passed])


def test_sgd_trains_alike_on_every_layout(ranks: RankPool, home: Path, tmp_path: Path) -> None:
    """Adam forgives a wrong scale; SGD does not."""
    plan = base_plan(home, "optimizer=sgd", steps=8)
    losses = trained(ranks, plan, grid(range(4), packing=[True]), tmp_path)
    packed = reference_for(plan, packing=True)
    verdicts = judged(plan, losses, tmp_path, packing_True=packed)
    print(said(verdicts))
    assert all(v.passed for v in verdicts), said([v for v in verdicts if not v.passed])


def test_bf16_trains_like_plain_bf16(ranks: RankPool, home: Path, tmp_path: Path) -> None:
    plan = base_plan(home, "optimizer=adamw", "precision=bf16", fp32=False)
    alone = Layout("plain", 1, 1, True)
    layouts = [alone] + [
        Layout(f"zero{stage}", world, 2, True)  # type: ignore[arg-type]
        for stage in (1, 2, 3)
        for world in WORLDS
    ]
    losses = trained(ranks, plan, layouts, tmp_path)
    plain = reference_from(alone, losses[alone], folder=tmp_path)
    verdicts = judged(plan, losses, tmp_path, packing_True=plain)
    print(said(verdicts))
    assert all(v.passed for v in verdicts), said([v for v in verdicts if not v.passed])


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_makes_the_suite_fail(
    fault: str, ranks: RankPool, home: Path, tmp_path: Path
) -> None:
    plan = base_plan(home, "optimizer=sgd", steps=4)
    layout = Layout("zero2", 2, 2, True)
    right = trained(ranks, plan, [layout], tmp_path / "right")
    wrong = trained(ranks, plan, [layout], tmp_path / "wrong", fault)
    packed = reference_for(plan, packing=True)
    (passes,) = judged(plan, right, tmp_path / "right", packing_True=packed)
    (fails,) = judged(plan, wrong, tmp_path / "wrong", packing_True=packed)
    assert passes.passed
    assert not fails.passed


def test_a_layout_that_cannot_be_cut_is_refused(home: Path) -> None:
    with pytest.raises(ValueError, match="24 rows cannot be cut into 7 micro-steps"):
        plan_of(base_plan(home), replace(Layout("zero2", 2, 1, True), accumulation=7))
