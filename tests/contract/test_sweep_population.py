"""Population-based training: through the real loop, store and forks; and whatever dies."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from launch.run.forking import fork
from launch.run.run_folder import create, read_record
from launch.settings.choices import Folders
from launch.sweep.best import best_trials, recipe
from launch.sweep.budget import Budget
from launch.sweep.folder import SweepFiles
from launch.sweep.grammar import space_of
from launch.sweep.journal import Journal, Trial, read_trials
from launch.sweep.population import succession
from launch.sweep.samplers import sampler_of
from launch.sweep.space import Choice, Interval, Space
from launch.sweep.sweeper import Sweeper
from tests.helpers.looped import Looped, job_of
from tests.helpers.sweeps import Killed, Recorded, pruner, section, sweeper
from trainer.errors import CheckpointMismatch, ConfigError, Refused
from trainer.job import TrainState, restored
from trainer.loop import fit
from trainer.records.manifest import decode
from trainer.records.run_files import RunFiles

_STEPS, _EVERY = 160, 10
_RATES = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def trained(folder: Path, *, kind: str, seed: int) -> dict[int, Trial]:
    """A sweep of every rate, through the real loop."""
    files = SweepFiles(folder)
    files.runs.mkdir(parents=True)
    rules = pruner(kind, first_step=_EVERY, factor=3)
    settings = section(
        sampler="grid", trials=len(_RATES), seed=seed, concurrency=3, pruner=rules, poll_s=1.0
    )
    space = space_of(settings, (f"rate={','.join(map(str, _RATES))}",))
    place = Looped(files, seed, _STEPS)
    made = Sweeper(
        section=settings,
        space=space,
        sampler=sampler_of(settings, space),
        journal=Journal(files.trials),
        place=place,
        budget=Budget.of(settings, ranks=1, grace_s=1.0),
        total=len(_RATES),
        last_step=_STEPS,
    )
    assert made.run() == "done"
    assert place.steps_made == _STEPS * len(_RATES)  # what a child was given is not made again
    return read_trials(files.trials)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_it_beats_every_fixed_setting_where_the_best_one_changes(tmp_path: Path, seed: int) -> None:
    fixed = trained(tmp_path / "fixed", kind="none", seed=seed)
    moved = trained(tmp_path / "moved", kind="pbt", seed=seed)
    (best,) = best_trials(moved, ["min"])
    assert len(fixed) == len(_RATES)
    assert best.values[0] < min(one.values[0] for one in fixed.values())
    ancestors = [best]
    while ancestors[-1].parent:
        ancestors.append(moved[ancestors[-1].parent])
    rates = [float(one.overrides[0].partition("=")[2]) for one in ancestors]
    assert len(ancestors) > 2
    assert rates[0] < rates[-1]  # smaller at the end than at the beginning
    assert sum(one.state == "finished" for one in moved.values()) == len(_RATES)


@pytest.mark.parametrize("speed", [{}, {n: 1.0 + n % 3 for n in range(1, 40)}])
def test_a_population_whose_sweeper_is_killed_ends_as_one_that_was_left_alone(
    tmp_path: Path, speed: dict[int, float]
) -> None:
    values = {"trials": 6, "pruner": pruner("pbt", first_step=20, factor=3), "concurrency": 2}
    ends = []
    for name, kills in (("whole", False), ("broken", True)):
        folder, place = tmp_path / name, Recorded(speed=speed if kills else {})
        folder.mkdir()
        times = 0
        while True:
            place.kill_at = place.clock + 31 if kills else None
            try:
                assert sweeper(folder, place, **values).run() == "done"  # type: ignore[arg-type]
                break
            except Killed:
                times += 1
        assert (times >= 4) == kills
        ends.append(read_trials(folder / "trials.jsonl"))
    assert points_of(ends[0]) == points_of(ends[1])
    # Two of six go at each of four rungs, and two come.
    assert len(ends[0]) == 6 + 4 * 2
    assert sum(one.state == "finished" for one in ends[0].values()) == 6
    assert sum(one.state == "pruned" for one in ends[0].values()) == 8
    children = [one for one in ends[0].values() if one.parent]
    assert all(min(one.rungs, default=100) > 20 for one in children)  # its own alone


def points_of(trials: dict[int, Trial]) -> list[tuple[int, int, dict[str, float], str]]:
    return [(n, one.parent, dict(one.point), one.state) for n, one in sorted(trials.items())]


def test_a_meeting_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """Killed in the middle of the line: the next sweeper judges them once more, to the same end."""
    values = {"trials": 6, "pruner": pruner("pbt", first_step=20, factor=3)}
    place = Recorded()
    assert sweeper(tmp_path, place, **values).run() == "done"  # type: ignore[arg-type]
    path = tmp_path / "trials.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    (first, *_) = (at for at, line in enumerate(lines) if '"event": "met"' in line)
    path.write_text("".join(lines[:first]) + lines[first][: len(lines[first]) // 2])
    half = read_trials(path)
    assert {one.state for one in half.values()} == {"paused"}
    journal = Journal(path)
    journal.write("told", 1, to="halt", why="")  # the torn line ends; nothing grows onto it
    assert len(read_trials(path)) == 6


SPACE = Space((Choice("a", (("a=1",), ("a=2",), ("a=3",))), Interval("b", 0.1, 10.0)))


def member(number: int, cost: float, *, state: str = "paused", parent: int = 0) -> Trial:
    point = {"a": 1, "b": 1.0}
    rungs = {20: cost}
    return Trial(number, point, (), state=state, rungs=rungs, parent=parent)  # type: ignore[arg-type]


def test_the_worst_go_and_the_best_have_children_beside_them() -> None:
    trials = {n: member(n, float(n)) for n in range(1, 7)}
    found = succession(trials, SPACE, (20, 40), total=6, factor=3, seed=1)
    assert found is not None
    assert (found.best, found.others) == ((1, 2, 3, 4), (5, 6))
    assert [one.number for one in found.children] == [7, 8]
    assert {one.parent for one in found.children} <= {1, 2}
    for child in found.children:
        assert child.point["a"] in (0, 2)
        assert child.point["b"] in (1.25, 0.8)
    assert found == succession(trials, SPACE, (20, 40), total=6, factor=3, seed=1)
    ends = {n: Trial(n, {"a": 2, "b": 10.0}, (), state="paused", rungs={20: 1.0}) for n in (1, 2)}
    at_the_end = succession(ends, SPACE, (20,), total=2, factor=2, seed=1)
    assert at_the_end is not None
    (child,) = at_the_end.children
    assert child.point["a"] in (1, 2)
    assert child.point["b"] in (8.0, 10.0)


def test_nobody_is_judged_while_one_is_on_the_way() -> None:
    trials = {n: member(n, float(n)) for n in range(1, 7)}
    assert succession(trials, SPACE, (20,), total=7, factor=3, seed=1) is None  # one is to come
    waits = trials | {3: member(3, 3.0, state="waiting")}
    assert succession(waits, SPACE, (20,), total=6, factor=3, seed=1) is None


def test_those_that_diverged_or_failed_are_replaced_and_those_stopped_by_hand_are_not() -> None:
    trials = {n: member(n, float(n)) for n in range(1, 7)}
    lost = trials | {2: member(2, 0.0, state="diverged"), 3: member(3, 0.0, state="stopped")}
    found = succession(lost, SPACE, (20,), total=6, factor=4, seed=1)
    assert found is not None
    assert found.others == (6,)
    assert len(found.children) == 2  # for the worst, and for the one that diverged
    assert {one.parent for one in found.children} == {1}


def test_settings_that_depend_on_each_other_are_no_population() -> None:
    depends = [{"when": "optimizer=sgd", "space": ["optimizer.momentum=0.0,0.9"]}]
    with pytest.raises(ConfigError, match="none may depend on another"):
        section(pruner=pruner("pbt"), conditional=depends)


# --- forks --------------------------------------------------------------------------------------


def run_to(run: RunFiles, step: int, *, rate: float, last_step: int = 20) -> dict[int, float]:
    """What it evaluates to; `step` 0: at its end."""
    run_id = read_record(run).run_id
    job = job_of(run.root, rate=rate, seed=1, last_step=last_step, run_id=run_id)
    loaded = job.checkpoints.load_latest(job.world, job.engine)
    state = restored(loaded) if loaded is not None else TrainState()
    fit(replace(job, pause_at=step), state)
    return job.evals[0].found  # type: ignore[attr-defined, no-any-return]


def settings(folder: Path, name: str) -> dict[str, object]:
    return {"run": {"root": str(folder), "name": name}}


def test_a_fork_goes_on_as_its_parent_would_have_and_leaves_it_alone(tmp_path: Path) -> None:
    parent = create(tmp_path, config=settings(tmp_path, "parent"), frozen_hash="f")
    run_to(parent, 10, rate=0.1)
    child, other = (
        fork(parent, config=settings(tmp_path, name), frozen_hash="f")
        for name in ("child", "other")
    )
    assert len({read_record(run).run_id for run in (parent, child, other)}) == 3
    same = [run_to(run, 0, rate=0.1) for run in (child, parent)]
    assert same[0] == same[1]  # to the bit
    assert same[0].keys() == {20}
    assert run_to(other, 0, rate=0.01) != same[0]
    manifest = decode((child.checkpoints / "step-00000010" / "manifest.json").read_bytes())
    assert manifest.attempt == 0
    assert manifest.origin["forked_from"] == f"parent ({read_record(parent).run_id})"


def test_a_checkpoint_that_is_only_copied_is_another_runs(tmp_path: Path) -> None:
    """What a fork changes in the manifest is what makes it its own."""
    parent = create(tmp_path, config=settings(tmp_path, "parent"), frozen_hash="f")
    run_to(parent, 10, rate=0.1)
    thief = create(tmp_path, config=settings(tmp_path, "thief"), frozen_hash="f")
    shutil.copytree(parent.checkpoints, thief.checkpoints)
    with pytest.raises(CheckpointMismatch, match="belongs to another run"):
        run_to(thief, 20, rate=0.1)


def test_a_fork_of_nothing_or_of_another_kind_of_run_is_refused(tmp_path: Path) -> None:
    parent = create(tmp_path, config=settings(tmp_path, "parent"), frozen_hash="f")
    with pytest.raises(Refused, match="child cannot go on from parent: that saved nothing"):
        fork(parent, config=settings(tmp_path, "child"), frozen_hash="f")
    with pytest.raises(Refused, match="differ in settings that no attempt of a run may change"):
        fork(parent, config=settings(tmp_path, "child"), frozen_hash="g")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]


def test_a_recipe_says_that_its_settings_changed_on_the_way() -> None:
    one = Trial(9, {}, ("run.seed=7",), state="finished", values=(1.0,), parent=4)
    text = recipe(one, fixed=(), section=section(), folders=Folders.find())
    assert "It went on from trial 4, with other settings from there on." in text
