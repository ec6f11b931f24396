"""Dropout drawn on a CPU leaves nothing behind: who went on has the bits of who did not stop."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import torch

from tests.helpers.task_cases import case_plan
from tests.helpers.trained_run import trained_by
from trainer.build import build_job
from trainer.dist.startup import StartUp
from trainer.dist.world import Alone
from trainer.export.trained import load_model, open_trained
from trainer.job import wind_up
from trainer.loop import fit
from trainer.models.dropout import ATTENTION, Dropout
from trainer.records.run_files import RunFiles

_SETTINGS = ("engine=plain", "model.dropout=0.2", "precision=autocast", "steps.save_every=2")


def _weights(run: RunFiles) -> dict[str, torch.Tensor]:
    trained = open_trained(run.root)
    assert trained.step == 4
    model = load_model(trained, dtype=torch.float32, device=torch.device("cpu"))
    return dict(model.state_dict())


def test_a_run_that_goes_on_drops_what_it_would_have_dropped(tmp_path: Path) -> None:
    plan = case_plan(tmp_path, "classify", _SETTINGS)
    run = trained_by(plan, tmp_path / "runs" / "classify")
    expected = _weights(run)
    (last,) = run.root.glob("checkpoints/*4")
    shutil.rmtree(last)
    torch.rand(7)  # whatever this process drew before
    job, state = build_job(plan, Alone(), run=run, stop=threading.Event(), startup=StartUp())
    assert state.step == 2
    model: Any = job.engine.model
    assert model.hf.config._attn_implementation == ATTENTION
    assert any(isinstance(module, Dropout) for module in model.modules())
    assert fit(job, state) == "finished"
    wind_up(job, state.step)
    found = _weights(run)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
