"""Every task on examples, however a step is cut up: the same losses, the same scores, exact resume.

A task joins by an entry in tests/helpers/task_cases.py. Worlds are started once a task and size:
all its layouts run one after another in them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import RankPool
from tests.helpers.task_cases import CASES, case_plan
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.job import wind_up
from trainer.loop import fit
from trainer.plan import RunPlan
from trainer.records.run_files import RunFiles
from trainer.reports import EvalReport, StepReport
from trainer.verify.layouts import Layout, plan_of

STEPS = 4
LAYOUTS = {
    1: [("plain", 1), ("plain", 2), ("zero1", 1)],
    2: [("zero1", 1), ("zero2", 2), ("zero3", 1)],
    3: [("zero2", 1), ("zero3", 2)],
}


@dataclass
class Seen:
    """An observer: what a run came to."""

    losses: list[float] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)

    def on_step(self, report: StepReport) -> None:
        self.losses.append(report.loss)

    def on_eval(self, report: EvalReport) -> None:
        self.values = report.values

    def on_save(self, report: Any) -> None: ...
    def on_upload(self, report: Any) -> None: ...
    def on_guard(self, report: Any) -> None: ...
    def close(self) -> None: ...


@dataclass
class StopAt:
    """Raised when the loop has asked so often; it asks once a step."""

    left: int = 0

    def is_set(self) -> bool:
        self.left -= 1
        return self.left == 0


def trained(world: World, plan: RunPlan, folder: Path, *, until: int = 0) -> Seen:
    """An attempt of the run in `folder`, which goes on where the last one stopped."""
    job, state = build_job(plan, world, run=RunFiles(folder), stop=StopAt(until), startup=StartUp())
    seen = Seen()
    fit(dataclasses.replace(job, observers=(seen,)), state)
    job.stream.close()
    wind_up(job, state.step)
    return seen


def in_all_layouts(
    world: World, base: RunPlan, folder: Path, others: dict[str, RunPlan]
) -> dict[str, tuple[list[float], dict[str, float]]]:
    """By layout: losses and scores; "resumed" is the last layout stopped and gone on with."""
    # `others` are runs of their own, in a world of one
    size, found = world.place.world_size, {}
    layouts = [Layout(engine, size, n, base.config.data.packing) for engine, n in LAYOUTS[size]]  # type: ignore[arg-type]
    for layout in layouts:
        seen = trained(world, plan_of(base, layout), folder / layout.name)
        found[layout.name] = (seen.losses, seen.values)
    for label, other in others.items() if size == 1 else ():
        seen = trained(world, plan_of(other, layouts[0]), folder / label)
        found[label] = (seen.losses, seen.values)
    plan = plan_of(base, layouts[-1])
    begun = trained(world, plan, folder / "resumed", until=2)
    ended = trained(world, plan.model_copy(update={"attempt": 2}), folder / "resumed")
    found["resumed"] = ([*begun.losses, *ended.losses], ended.values)
    return found


def whole_epochs(folder: Path, name: str) -> dict[str, RunPlan]:
    """Runs whose every step is all there is to train on, packed and not."""
    found = {}
    for label, packing in (("packed", "true"), ("apart", "false")):
        given = [f"data.packing={packing}", f"run.name={label}"]
        rows = case_plan(folder, name, given).stores[0].train_rows
        size = [f"batch.global_batch_size={rows}", f"batch.micro_batch_size={rows}"]
        found[label] = case_plan(folder, name, [*given, *size, "evals.held_out_rows=1000"])
    return found


@pytest.mark.parametrize("name", CASES)
def test_a_task_trains_and_scores_alike_however_a_step_is_cut_up(
    ranks: RankPool, tmp_path: Path, name: str
) -> None:
    base, others = case_plan(tmp_path, name), whole_epochs(tmp_path, name)
    expected: tuple[list[float], dict[str, float]] | None = None
    for size in LAYOUTS:
        folder = tmp_path / f"world-{size}"
        answers = ranks.run(size, in_all_layouts, base, folder, others, timeout_s=100)
        assert all(answer == answers[0] for answer in answers)  # all ranks see the same
        found = answers[0]
        together, alone = (found.pop(label, ([], {})) for label in ("packed", "apart"))
        assert together[0] == pytest.approx(alone[0], rel=5e-6)
        assert together[1] == pytest.approx(alone[1], rel=5e-6)
        expected = expected or next(iter(found.values()))
        for layout, (losses, values) in found.items():
            assert len(losses) == STEPS
            assert losses == pytest.approx(expected[0], rel=5e-6), layout
            assert values == pytest.approx(expected[1], rel=5e-6), layout
        *_, last, resumed = found
        assert resumed == "resumed"
        assert found[resumed] == found[last]  # to the bit
    assert expected is not None
    assert expected[0][-1] != expected[0][0]  # something was learnt
