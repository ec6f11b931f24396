"""`longhaul replay` on incidents of real runs whose cause is known, because it was planted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from launch.settings.asked import defaults
from tests.helpers.guard_ranks import Wanted, attempt_all
from tests.helpers.ranks import RankPool
from tests.helpers.task_cases import case_plan
from tests.helpers.tiny_run import tiny_run
from trainer.commands import replay
from trainer.errors import Exit
from trainer.faultpoints import Fault
from trainer.guard.incident import read_incident
from trainer.plan import write_plan
from trainer.records.owner import Owner, write_owner
from trainer.records.run_files import RunFiles

_COMMON = (
    *("evals.held_out_rows=0", "evals.sample_tokens=0", "checkpoint.asynchronous=false"),
    *("guard=strict", "guard.window=8", "schedule=constant", "run.trust=[tests]"),
)
_NAN = Fault("step.gradient", "nan", rank=1, hit=2, step=3, value=700)
_LOSS = Fault("step.forward", "inf", rank=1, hit=1, step=5)


def _task(name: str, **settings: int) -> tuple[str, ...]:
    values = [f"task.settings.{key}={value}" for key, value in settings.items()]
    return ("task=custom", f"task.target=tests.helpers.tasks:{name}", *(f"+{v}" for v in values))


# name -> (overrides, what is planted, the incident's step)
_RUNS: dict[str, tuple[tuple[str, ...], Sequence[Fault], int]] = {
    "gradient": (("engine=zero2", "steps.save_every=2"), [_NAN], 3),
    "loss": (("engine=zero3", "precision=fp32", "steps.save_every=3"), [_NAN, _LOSS], 5),
    "data": (
        (
            *("engine=zero1", "steps.total=9", "steps.save_every=4"),
            *_task("PoisonedRows", first=44, stop=46),
        ),
        [],
        8,
    ),
    "bf16": (("engine=zero2", *_task("NotInBfloat16", at=20)), [], 4),
    "weights": (
        ("engine=zero0", "precision=fp32", "steps.total=11", "steps.save_every=9"),
        [Fault("step.update", "flip", step=9, value=9700)],  # of a layer, on all ranks alike
        10,
    ),
}


def _examples(folder: Path) -> RunFiles:
    overrides = (*_COMMON[2:], "batch.micro_batch_size=2", "resources.ranks_per_node=2")
    plan = case_plan(folder, "classify", (*overrides, "steps.total=5"))
    run = RunFiles(folder / "runs" / "classify")
    run.attempt(1).root.mkdir(parents=True)
    write_plan(run.attempt(1).plan, plan)
    run.run_json.write_text("{}")
    return run


@pytest.fixture(scope="module")
def runs(ranks: RankPool, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFiles]:
    """All of them in one world."""
    folder = tmp_path_factory.mktemp("replay")
    made = {}
    for name, (overrides, _, _) in _RUNS.items():
        made[name] = tiny_run(folder, (*_COMMON, *overrides), name=name)
    wanted = [Wanted(run.root, faults=_RUNS[name][1]) for name, run in made.items()]
    made["examples"] = _examples(folder)
    wanted.append(Wanted(made["examples"].root, faults=[_LOSS]))
    for seen in zip(*ranks.run(2, attempt_all, wanted), strict=True):
        assert not seen[0].error
    return made


@pytest.fixture
def ask(
    runs: dict[str, RunFiles], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Any]]:
    def answer(name: str, *options: str) -> tuple[int, Any]:
        code = replay.main([str(runs[name].root), "--json", *options])
        out = capsys.readouterr()
        return code, json.loads(out.out) if out.out else out.err

    return answer


def test_a_damaged_gradient_does_not_happen_again(ask: Callable[..., tuple[int, Any]]) -> None:
    code, found = ask("gradient")
    assert (code, found["cause"], found["from_step"]) == (Exit.FAILED, "hardware", 2)
    assert "the gradient norm was inf where the repetition has" in found["why"]
    assert found["recorded"]["grad_norm"] is None
    assert found["again"][0] == found["again"][1]
    assert found["ranks"] == []  # nobody can say which: the losses were right


def test_a_damaged_loss_names_its_rank_over_a_step_that_was_left_out(
    ask: Callable[..., tuple[int, Any]],
) -> None:
    code, found = ask("loss", "--step", "5")
    assert (code, found["cause"], found["ranks"]) == (Exit.FAILED, "hardware", [1])
    assert "rank 1 had a loss of inf where the repetition has" in found["why"]
    # from step 3 on, which was left out: the loss of the rank that was well is met exactly
    assert found["from_step"] == 3


def test_a_run_that_was_started_again_since_is_replayed(
    runs: dict[str, RunFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An attempt that came later owns it; who only reads need not be the owner."""
    later = RunFiles(tmp_path / "later")
    shutil.copytree(runs["gradient"].root, later.root)
    write_owner(later.owner, Owner(2, "another-host", 17, 4, "b"))
    assert replay.main([str(later.root), "--json"]) == Exit.FAILED
    found = json.loads(capsys.readouterr().out)
    assert (found["cause"], found["from_step"]) == ("hardware", 2)


def test_a_run_from_before_a_section_is_replayed(
    runs: dict[str, RunFiles], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = RunFiles(tmp_path / "old")
    shutil.copytree(runs["gradient"].root, old.root)
    plan = json.loads(old.attempt(1).plan.read_text())
    del plan["config"]["watch"], plan["config"]["guard"]["spike_sigmas"]
    old.attempt(1).plan.write_text(json.dumps(plan))
    assert replay.main([str(old.root)]) == Exit.STOP
    assert "plan.json is no plan of this version: config." in capsys.readouterr().err
    known = tmp_path / "config.json"
    known.write_text(json.dumps(defaults()))
    assert replay.main([str(old.root), "--json", "--defaults", str(known)]) == Exit.FAILED
    assert json.loads(capsys.readouterr().out)["cause"] == "hardware"


def test_poisoned_rows_are_named(ask: Callable[..., tuple[int, Any]]) -> None:
    code, found = ask("data")
    assert (code, found["cause"]) == (Exit.DONE, "data")
    assert [row["sample"] for row in found["rows"]] == [44, 45]
    assert "files row" in found["rows"][0]["origin"]


def test_a_step_of_examples_is_made_again(ask: Callable[..., tuple[int, Any]]) -> None:
    """Packed rows of a batch that has one row of padding: the losses of all but one are met."""
    code, found = ask("examples")
    assert (code, found["cause"], found["ranks"]) == (Exit.FAILED, "hardware", [1]), found
    assert "rank 1 had a loss of inf where the repetition has" in found["why"]
    assert (found["step"], found["from_step"]) == (5, 0)


def test_what_only_16_bits_cannot_hold_is_numeric(ask: Callable[..., tuple[int, Any]]) -> None:
    code, found = ask("bf16")
    assert (code, found["cause"]) == (Exit.DONE, "numeric")
    assert "not in fp32" in found["why"]
    assert found["in_fp32"]["loss"] is not None


def test_weights_that_went_wrong_are_numeric(
    ask: Callable[..., tuple[int, Any]], runs: dict[str, RunFiles]
) -> None:
    code, found = ask("weights", "--step", "10")
    assert read_incident(runs["weights"].incidents, 10).shared["checkpoint_step"] == 9
    assert (code, found["cause"]) == (Exit.DONE, "numeric")
    assert "in fp32 too" in found["why"]
    assert "no row stands out" in found["why"]
    assert found["usual_loss"] is None or found["usual_loss"] > 6  # other rows are no better


def test_what_cannot_be_replayed_is_said(
    ask: Callable[..., tuple[int, Any]], runs: dict[str, RunFiles], tmp_path: Path
) -> None:
    assert ask("data", "--step", "7") == (
        Exit.REFUSED,
        "error: data has no incident at step 7; there is 8\n",
    )
    code, said = ask("bf16", "--max-steps", "2")
    assert code == Exit.REFUSED
    assert "step 4 is 3 steps after a checkpoint (none is before it); --max-steps 3" in said
    place = runs["bf16"].incidents / "step-00000004" / "rank-00001.json"
    content = place.read_bytes()
    place.unlink()
    assert "lacks rows of some ranks (1 of 2 files" in ask("bf16")[1]
    place.write_bytes(content[: len(content) // 2])
    assert "rank-00001.json is no record of an incident" in ask("bf16")[1]
    place.write_bytes(content)


def test_a_run_without_incidents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert replay.main([str(tmp_path)]) == Exit.REFUSED
    assert "has no incidents: no step's numbers were wrong" in capsys.readouterr().err
