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
_PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
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
    """Runs whose every step is all there is to train on, packed and not. Of text none: rows of
    pieces are another text than rows of several documents.
    """
    if CASES[name].text:
        return {}
    found = {}
    for label, packing in (("packed", "true"), ("apart", "false")):
        given = [f"data.packing={packing}", f"run.name={label}"]
        rows = case_plan(folder, name, given).stores[0].train_rows
        size = [f"batch.global_batch_size={rows}", f"batch.micro_batch_size={rows}"]
        found[label] = case_plan(folder, name, [*given, *size, "evals.held_out_rows=1000"])
    return found


Found = dict[str, tuple[list[float], dict[str, float]]]  # by layout: losses and scores


@dataclass(frozen=True)
class Runs:
    """What one case trains."""

    base: RunPlan
    others: dict[str, RunPlan]


def all_cases(world: World, cases: dict[str, Runs], folder: Path) -> dict[str, Found]:
    return {n: in_all_layouts(world, c.base, folder / n, c.others) for n, c in cases.items()}


@pytest.fixture(scope="module")
def found(
    ranks: RankPool, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[int, Found]]:
    """By case and size of the world: of the cases whose tests were asked for, started together."""
    folder = tmp_path_factory.mktemp("tasks")
    asked = [item.callspec.params.get("name") for item in request.session.items if _is_ours(item)]
    cases = {n: Runs(case_plan(folder, n), whole_epochs(folder, n)) for n in CASES if n in asked}
    by_case: dict[str, dict[int, Found]] = {name: {} for name in cases}
    for size in LAYOUTS:
        limit = 60 + 40 * len(cases)
        answers = ranks.run(size, all_cases, cases, folder / f"world-{size}", timeout_s=limit)
        assert all(answer == answers[0] for answer in answers)  # all ranks see the same
        for name, of_case in answers[0].items():
            by_case[name][size] = of_case
    return by_case


def _is_ours(item: Any) -> bool:
    return item.path == Path(__file__) and hasattr(item, "callspec")


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("name", CASES)
def test_a_task_trains_and_scores_alike_however_a_step_is_cut_up(
    found: dict[str, dict[int, Found]], name: str
) -> None:
    expected = next(iter(found[name][1].values()))
    for of_world in found[name].values():
        layouts = dict(of_world)
        together, alone = (layouts.pop(label, ([], {})) for label in ("packed", "apart"))
        assert together[0] == pytest.approx(alone[0], rel=5e-6)
        assert_same_scores(together[1], alone[1], "packed")
        for layout, (losses, values) in layouts.items():
            assert len(losses) == STEPS
            assert losses == pytest.approx(expected[0], rel=5e-6), layout
            assert_same_scores(values, expected[1], layout)
        *_, last, resumed = layouts
        assert resumed == "resumed"
        assert layouts[resumed] == layouts[last]  # to the bit
    assert expected[0][-1] != expected[0][0]  # something was learnt
    row, page = documented(name, found[name]), _PAGE.read_text(encoding="utf-8")
    assert row in page.splitlines(), f"docs/tasks.md lacks what ran here:\n{row}"


def documented(name: str, worlds: dict[int, Found]) -> str:
    """The row of docs/tasks.md that says what ran: layouts of it, and names of its scores."""
    layouts = [label.split("-") for found in worlds.values() for label in found if "-w" in label]
    engines = ", ".join(sorted({engine for engine, *_ in layouts}))
    sizes = ", ".join(sorted({size[1:] for _, size, *_ in layouts}))
    accumulation = ", ".join(sorted({parts[2][1:] for parts in layouts}))
    packed = "packed and apart" if {"packed", "apart"} <= set(worlds[1]) else "of text"
    model = next(word for word in CASES[name].model if word.startswith("model="))
    scores = ", ".join(next(iter(worlds[1].values()))[1])
    model, cells = model.removeprefix("model="), (engines, sizes, accumulation, packed, scores)
    return f"| `{name}` | `{model}` | {' | '.join(cells)} |"


def assert_same_scores(values: dict[str, float], expected: dict[str, float], what: str) -> None:
    assert list(values) == list(expected)
    for name, value in values.items():
        rel = 5e-5 if name == "pearson" else 5e-6  # 3e-6 seen: of 7 answers, about their mean
        assert value == pytest.approx(expected[name], rel=rel, abs=1e-12), (what, name)
