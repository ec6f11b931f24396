"""Epochs come to steps: every row as often as was asked for."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from launch.settings.asked import from_overrides, overlaid
from tests.helpers.configs import config
from tests.helpers.task_cases import case_plan
from trainer.data.table import open_sources, open_stream
from trainer.dist.world import Alone
from trainer.epochs import in_steps
from trainer.errors import ConfigError
from trainer.plan import StorePlan

TEXT = StorePlan(
    source="files", path="-", weight=1.0, train_tokens=10_000, held_out_tokens=0, manifest_digest=""
)
ROWS = (
    "data.sequence_length=100",
    "batch.global_batch_size=4",
    "batch.micro_batch_size=2",
)  # 99 rows, 24.75 steps


@pytest.mark.parametrize(("epochs", "steps"), [("1", 25), ("2", 50), ("0.25", 7), ("0.001", 1)])
def test_epochs_of_text_are_steps_over_its_packed_rows(epochs: str, steps: int) -> None:
    wanted = config(*ROWS, f"steps.epochs={epochs}", "schedule.warmup_steps=0")
    planned = in_steps(wanted, [TEXT])
    assert planned.steps.total == steps
    assert in_steps(planned, [TEXT]) == planned  # as often as it is asked
    assert in_steps(wanted, []) == wanted  # nothing is prepared yet


def test_two_epochs_of_examples_are_each_row_twice(tmp_path: Path) -> None:
    given = ["batch.global_batch_size=4", "batch.micro_batch_size=4", "data.packing=false"]
    plan = case_plan(tmp_path, "classify", ["steps.epochs=2", *given], count=41)
    rows, total = plan.stores[0].train_rows, plan.config.steps.total
    assert total == -(-2 * rows // 4)
    with closing(open_stream(plan, Alone(), sources=open_sources(plan), cursor=None)) as stream:
        seen = Counter(place.row for place in stream.places(0, 2 * rows))
        assert [stream.step(step)[0].terms for step in (1, total)] == [4, 4]
    assert seen == dict.fromkeys(range(rows), 2)


def test_what_so_few_steps_make_impossible_is_said() -> None:
    wanted = config(*ROWS, "steps.epochs=1", "schedule.warmup_steps=100")  # of 300 it would do
    with pytest.raises(ConfigError) as seen:
        in_steps(wanted, [TEXT])
    (problem,) = seen.value.problems
    assert problem.what == "warm-up takes 100 steps and the whole run 25"


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (
            ("data.packing=false",),
            "rows of text that are not packed are not counted before they are read",
        ),
        (
            ("task=masked_lm_nsp", "model=bert_base", "data/tokenizer=pretrained",
             "data.tokenizer.path=t"),
            "masked_lm_nsp draws its pairs of stretches as it goes, and has no epochs",
        ),
    ],
)  # fmt: skip
def test_text_whose_rows_nobody_knows_has_no_epochs(given: tuple[str, ...], what: str) -> None:
    with pytest.raises(ConfigError) as seen:
        config(*given, "steps.epochs=1")
    assert what in [p.what for p in seen.value.problems]


def test_a_total_that_is_typed_is_the_newer_wish() -> None:
    values = config("steps.epochs=3").model_dump(mode="json")
    assert overlaid(values, values, ["steps.total=600"])["steps"]["epochs"] is None
    assert overlaid(values, values, ["steps.log_every=6"])["steps"]["epochs"] == 3
    with pytest.raises(ConfigError) as seen:
        from_overrides(["steps.epochs=3", "steps.total=600"])
    assert [p.where for p in seen.value.problems] == ["steps.epochs"]
    assert from_overrides(["steps.epochs=3"]).steps.epochs == 3
