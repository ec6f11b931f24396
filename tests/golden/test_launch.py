"""What the default run would write and run on one machine."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from launch.backends.local import LocalBackend
from launch.dry_run import DryRun, as_json, as_text
from launch.settings.asked import from_overrides
from trainer.plan import RunPlan
from trainer.planning import make_plan


@pytest.fixture(scope="module")
def plan() -> RunPlan:
    """The default run on a machine of two cores, before its data is prepared."""
    return make_plan(
        from_overrides([]),
        attempt=1,
        run_id="0123456789abcdef",
        stores=(),
        device="cpu",
        cores=2,
        vocab_size_of_tokenizer=None,
    )


def dry(plan: RunPlan) -> DryRun:
    return DryRun(
        plan=plan,
        submission=LocalBackend().render(plan, run_folder="runs/first-run"),
        run_folder="runs/first-run",
        is_new=True,
        finished_at=0,
        needs_prepare=True,
    )


def test_the_local_submission(plan: RunPlan, golden: Callable[[str, str], None]) -> None:
    submission = LocalBackend().render(plan, run_folder="runs/first-run")
    parts = [" ".join(submission.argv)]
    parts += [f"--- {name}\n{text}" for name, text in submission.files.items()]
    golden("local_submission.txt", "\n".join(parts))


def test_the_dry_run_of_the_default_run(plan: RunPlan, golden: Callable[[str, str], None]) -> None:
    golden("train_dry_run.txt", as_text(dry(plan)) + "\n")


def test_the_dry_run_as_json_is_the_plan_in_full(plan: RunPlan) -> None:
    value = json.loads(as_json(dry(plan)))
    assert RunPlan.model_validate(value["plan"]) == plan
