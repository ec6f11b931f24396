"""`data show` of labelled examples: those of a row of a step, what is learnt marked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.task_cases import case_plan
from trainer.commands import data_show
from trainer.plan import RunPlan
from trainer.records.json_file import write_json


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> RunPlan:
    return case_plan(tmp_path_factory.mktemp("shown"), "seq2seq", ("data.packing=true",))


def show(plan: RunPlan, folder: Path, *options: str, capsys: pytest.CaptureFixture[str]) -> str:
    write_json(folder / "config.json", plan.config.model_dump(mode="json"))
    capsys.readouterr()
    assert data_show.main([str(folder / "config.json"), *options]) == 0
    return capsys.readouterr().out


def test_every_example_is_shown_once_in_an_epoch(
    plan: RunPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = plan.stores[0].train_rows
    seen: list[str] = []
    for sample in range(rows):
        found = json.loads(show(plan, tmp_path, "--sample", str(sample), "--json", capsys=capsys))
        assert found["length"] <= plan.config.data.sequence_length
        seen += found["examples"]
    assert len(seen) == len(set(seen)) == plan.stores[0].train_examples > rows  # rows are shared


def test_what_is_learnt_is_marked_for_people(
    plan: RunPlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = show(plan, tmp_path, "--step", "2", "--row", "1", capsys=capsys)
    assert said.startswith("sample 6: row ")
    assert "--- " in said
    assert ">>" in said
    assert "</s><<" in said  # the end is learnt as well
