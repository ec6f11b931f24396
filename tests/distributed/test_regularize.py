"""Regularisation however a step is cut up: the same losses, the same scores, exact resume.

One case a setting, all of them trained in two worlds that are started once. Dropout is off: where
a step is cut otherwise it draws otherwise, and that alone would differ. R-Drop needs it, and is
held between two layouts with the same micro-batches.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests.distributed.test_tasks import Seen, StopAt
from tests.helpers.ranks import RankPool
from tests.helpers.task_cases import case_plan
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import RunPlan
from trainer.records.run_files import RunFiles
from trainer.verify.layouts import Layout, plan_of

# name: (task, settings)
CASES: dict[str, tuple[str, list[str]]] = {
    "without": ("classify", []),
    "ema": ("classify", ["regularize.ema.decay=0.9"]),
    "neftune": ("classify", ["regularize.neftune=5"]),
    "neftune of a decoder": ("chat", ["regularize.neftune=5"]),
    "r_drop": ("classify", ["regularize.r_drop=1", "model.dropout=0.2"]),
    "fgm": ("classify", ["regularize.adversarial.kind=fgm"]),
    "pgd of a decoder": ("chat", ["regularize.adversarial.kind=pgd"]),
    "freelb": ("tag", ["regularize.adversarial.kind=freelb", "regularize.adversarial.steps=2"]),
    "mixout": ("classify", ["regularize.mixout=0.4"]),
    "mixout of a decoder": (
        "chat",
        ["regularize.mixout=0.4", "model.activation_checkpointing=true"],
    ),
    "lora of two stacks": (
        "seq2seq_t5",
        ["model/adapter=lora", "model.adapter.targets=[q,v,wi,wo]", "model.adapter.rank=4"],
    ),
    "llrd": ("classify", ["regularize.layer_decay=0.5"]),
    "unfreeze": ("classify", ["regularize.unfreeze_every=1"]),
    "early": (
        "classify",
        [
            "steps.eval_every=1",
            "regularize.early_stopping.patience=1",
            "regularize.early_stopping.margin=100",
        ],
    ),
}
LAYOUTS = {1: [("plain", 1), ("plain", 2)], 2: [("zero2", 2), ("zero3", 1)]}
RESUMED = ("ema", "early", "unfreeze", "mixout", "lora of two stacks", "fgm")
DROPS_OUT = ("r_drop",)
SAME_CUT = ("plain-w1-a2-packed", "zero3-w2-a1-packed")
STEPS = 4
# losses, scores, the last step and the best one
OneRun = tuple[list[float], dict[str, float], tuple[int, int | None]]
Found = dict[str, OneRun]  # by layout


def trained(world: World, plan: RunPlan, folder: Path, *, until: int = 0) -> OneRun:
    """An attempt of the run in `folder`, which goes on where the last one stopped."""
    job, state = build_job(plan, world, run=RunFiles(folder), stop=StopAt(until), startup=StartUp())
    seen = Seen()
    fit(dataclasses.replace(job, observers=(seen,)), state)
    job.stream.close()
    wind_up(job, state.step)
    return seen.losses, seen.values, (state.step, job.best.result)


def all_cases(world: World, plans: dict[str, RunPlan], folder: Path) -> dict[str, Found]:
    return {
        name: in_all_layouts(world, plan, folder / name, resumed=name in RESUMED)
        for name, plan in plans.items()
    }


def in_all_layouts(world: World, base: RunPlan, folder: Path, *, resumed: bool) -> Found:
    """By layout; "resumed" is the last one, stopped after two steps and gone on with."""
    size, found = world.place.world_size, {}
    for engine, accumulation in LAYOUTS[size]:
        layout = Layout(engine, size, accumulation, base.config.data.packing)  # type: ignore[arg-type]
        plan = plan_of(base, layout)
        found[layout.name] = trained(world, plan, folder / layout.name)
    if not resumed:
        return found
    begun = trained(world, plan, folder / "resumed", until=2)
    ended = trained(world, plan.model_copy(update={"attempt": 2}), folder / "resumed")
    found["resumed"] = ([*begun[0], *ended[0]], *ended[1:])
    return found


@pytest.fixture(scope="module")
def found(
    ranks: RankPool, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, dict[str, Found]]:
    """By size of the world and case: all of them, or the one that was asked for."""
    folder = tmp_path_factory.mktemp("regularize")
    more = [f"steps.total={STEPS}", "steps.eval_every=2", "checkpoint.asynchronous=false"]
    ours = [item for item in request.session.items if item.path == Path(__file__)]
    asked = {item.callspec.params["name"] for item in ours if hasattr(item, "callspec")}
    alone = all(hasattr(item, "callspec") for item in ours)
    plans = {
        name: case_plan(folder, task, [*more, *given])
        for name, (task, given) in CASES.items()
        if name in asked or not alone
    }
    by_size = {}
    for size in LAYOUTS:
        answers = ranks.run(size, all_cases, plans, folder / f"world-{size}")
        assert all(answer == answers[0] for answer in answers)  # all ranks see the same
        by_size[size] = answers[0]
    return by_size


@pytest.mark.parametrize("name", CASES)
def test_it_is_alike_however_a_step_is_cut_up(
    found: dict[int, dict[str, Found]], name: str
) -> None:
    if name in DROPS_OUT:
        alike = {n: run for of_size in found.values() for n, run in of_size[name].items()}
        found = {0: {name: {n: alike[n] for n in SAME_CUT}}}
    losses, values, end = next(iter(next(iter(found.values()))[name].values()))
    for of_size in found.values():
        if name in RESUMED:
            *_, last, resumed = of_size[name]
            assert resumed == "resumed"
            assert of_size[name][resumed] == of_size[name][last]  # to the bit
        for layout, (its_losses, its_values, its_end) in of_size[name].items():
            assert its_losses == pytest.approx(losses, rel=5e-6), layout
            assert its_values == pytest.approx(values, rel=5e-6), layout
            assert its_end == end, layout


def test_each_setting_changes_something(found: dict[int, dict[str, Found]]) -> None:
    plain = next(iter(found[1]["without"].values()))
    for name in CASES:
        mine = next(iter(found[1][name].values()))
        assert name == "without" or mine != plain, name


def test_all_layouts_end_early_at_the_same_step(found: dict[int, dict[str, Found]]) -> None:
    for of_size in found.values():
        for _, _, end in of_size["early"].values():
            assert end == (2, 1)  # nothing is better than the first by so much
