"""Memory ran out: the same steps in smaller pieces, where that is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.base import spec_of
from launch.node.ranks_spec import RANKS_FILE, spec_text
from launch.outcome import Outcome
from launch.run.next_attempt import next_attempt
from launch.run.run_folder import new_attempt
from launch.settings.asked import of_run
from launch.why import why_text
from tests.helpers.configs import config
from trainer.errors import Exit
from trainer.plan import RunPlan, plan_of_attempt, write_plan
from trainer.planning import make_plan
from trainer.records.attempt import ErrorRecord, write_record
from trainer.records.json_file import write_json
from trainer.records.lineage import read_lineage
from trainer.records.run_files import AttemptFiles, RunFiles

OOM = Outcome("again", Exit.FAILED, "rank 1 was ended by the kernel", "oom")


def begun(root: Path, *overrides: str) -> tuple[RunFiles, RunPlan]:
    """A run whose first attempt has a plan and ranks."""
    run = RunFiles(root / "run")
    run.root.mkdir()
    files = new_attempt(run)
    plan = make_plan(
        config(f"run.root={root}", "run.name=run", "batch.global_batch_size=12", *overrides),
        attempt=1,
        run_id="r",
        stores=(),
        device="cpu",
        cores=4,
        vocab_size_of_tokenizer=4096,
    )
    write_plan(files.plan, plan)
    path = files.root / RANKS_FILE
    path.parent.mkdir()
    path.write_text(spec_text(spec_of(plan)))
    return run, plan


def after(run: RunFiles, outcome: Outcome = OOM) -> AttemptFiles:
    return next_attempt(run, run.attempt(1), outcome)


@pytest.mark.parametrize(
    ("rows", "smaller", "steps"), [(6, 3, (1, 2)), (4, 2, (2, 3)), (3, 1, (2, 6)), (2, 1, (3, 6))]
)
def test_the_next_attempt_has_half_the_micro_batch_and_the_same_batch(
    tmp_path: Path,
    rows: int,
    smaller: int,
    steps: tuple[int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    two = ("resources.ranks_per_node=2", f"batch.micro_batch_size={rows}")
    run, before = begun(tmp_path, *two)
    files = after(run)
    plan = plan_of_attempt(files)
    assert (plan.attempt, plan.config.batch.micro_batch_size) == (2, smaller)
    assert (before.gradient_accumulation_steps, plan.gradient_accumulation_steps) == steps
    assert (plan.config.batch.global_batch_size, plan.tokens_per_step) == (
        12,
        before.tokens_per_step,
    )
    assert plan.memory_per_rank.activations < before.memory_per_rank.activations
    batch = before.config.batch.model_copy(update={"micro_batch_size": smaller})
    assert plan.config == before.config.model_copy(update={"batch": batch})
    said = f"attempt 2 has batch.micro_batch_size={smaller} instead of {rows}\n"
    assert capsys.readouterr().err == said
    (line,) = read_lineage(run.lineage)
    assert [(one["old"], one["new"]) for one in line.changes] == [(rows, smaller)]
    assert not line.bitexact
    write_record(run.attempt(1).error, ErrorRecord(1.0, 1, "n1", "OutOfMemory", "ran out", 76))
    why = why_text(run, run.attempt(1), is_chosen=True)
    assert "\n  kind: out of memory of the machine\n" in why
    assert (
        f"  then attempt 2 came after it, with batch.micro_batch_size={smaller} for {rows}" in why
    )
    assert of_run(run, []).batch.micro_batch_size == smaller  # whoever resumes it keeps that


@pytest.mark.parametrize(
    "overrides",
    [
        ("batch.micro_batch_size=1",),
        ("batch.micro_batch_size=4", "restart.smaller_micro_batch=false"),
        ("batch.micro_batch_size=4", "engine=canonical"),  # its bits would be others
    ],
)
def test_where_it_is_not_allowed_the_plan_stays(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    run, before = begun(tmp_path, *overrides)
    assert plan_of_attempt(after(run)) == before.model_copy(update={"attempt": 2})


def test_another_failure_changes_nothing(tmp_path: Path) -> None:
    run, before = begun(tmp_path, "batch.micro_batch_size=4")
    files = after(run, Outcome("again", Exit.FAILED, "rank 1 failed", "crash"))
    assert plan_of_attempt(files) == before.model_copy(update={"attempt": 2})


def test_a_plan_that_cannot_be_judged_is_taken_as_it_is(tmp_path: Path) -> None:
    run, plan = begun(tmp_path, "batch.micro_batch_size=4")
    values = plan.model_dump(mode="json")
    values["config"]["model"] = {"kind": "folder", "path": "gone"}
    write_json(run.attempt(1).plan, values)
    assert after(run).plan.exists()
    (line,) = read_lineage(run.lineage)
    assert line.changes == ()
