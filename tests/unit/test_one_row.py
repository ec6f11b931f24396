"""Rows of a batch, each by itself, say what they say together; also from an incident's file."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.helpers.task_cases import case_plan
from trainer.build import build_engine, starting_values
from trainer.data.table import open_sources, open_stream
from trainer.dist.world import Alone
from trainer.guard.incident import Incidents, read_incident
from trainer.tasks.table import change_of, trained_task
from trainer.verify.one_row import one_row

GIVEN = ("engine=plain", "model.dropout=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@pytest.mark.parametrize(
    "name",
    ["classify", "extract_qa", "tag", "chat", "dpo", "seq2seq_t5", "masked_lm_nsp", "masked_lm"],
)
def test_losses_of_rows_add_up_to_the_batchs(name: str, folder: Path) -> None:
    plan = case_plan(folder, name, GIVEN)
    world = Alone()
    engine, task = build_engine(plan, world), trained_task(plan)
    engine.load(starting_values(plan, engine), step=0)
    model = engine.model.eval()
    sources, change = open_sources(plan), change_of(plan)
    stream = open_stream(plan, world, sources=sources, cursor=None, change=change)
    [batch] = stream.step(2)
    Incidents(folder / name / "incidents", 0, {"world_size": 1}).write(
        2, {"loss": math.nan, "grad_norm": 1.0}, batches=[batch], losses=[1.0]
    )
    incident = read_incident(folder / name / "incidents", 2)
    assert incident.is_whole
    [made] = incident.by_rank[0]
    assert made.batch is not None
    with torch.no_grad():
        whole = float(task.loss_sum(model, batch))
        assert float(task.loss_sum(model, made.batch)) == whole
        rows = [one_row(made.batch, row) for row in range(len(batch.sample_indices))]
        losses = [float(task.loss_sum(model, row)) for row in rows]
    stream.close()
    assert len(rows) == 5
    assert sum(losses) == pytest.approx(whole, rel=1e-5)
    assert min(losses) > 0
    assert sum(row.terms for row in rows) == pytest.approx(batch.terms)
    assert sum(row.tokens for row in rows) == batch.tokens
    assert [row.sample_indices for row in rows] == [(s,) for s in batch.sample_indices]
