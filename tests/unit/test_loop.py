"""What the loop does in which order, with a real engine and store around a model of two numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.guards import guard_rules
from trainer.batch import TokenBatch
from trainer.checkpoint.store import CheckpointStore
from trainer.config.sections.training import PrecisionSection
from trainer.dist.device import Peak
from trainer.dist.heartbeat import NoPulse
from trainer.dist.world import Alone, World
from trainer.engine.base import Engine
from trainer.engine.plain import PlainEngine
from trainer.errors import NonFiniteStep, SaveFailed, TooManyFailedSaves
from trainer.guard.guard import Guard
from trainer.guard.incident import Incidents
from trainer.job import Every, Job, TrainState, restored
from trainer.loop import fit
from trainer.meter import Meter
from trainer.reports import EvalReport, GuardReport, SaveReport, StepReport, UploadReport
from trainer.tasks.base import means


class Distance:
    """A task: the squared distance of the weights to the batch's inputs, per term."""

    def __init__(self, *, nan_from: int = 0) -> None:
        self._calls, self._nan_from = 0, nan_from

    def loss_sum(self, model: torch.nn.Module, batch: TokenBatch) -> torch.Tensor:
        self._calls += 1
        loss: torch.Tensor = (model.weight - batch.inputs_RT.float()).square().sum()
        return loss * float("nan") if 0 < self._nan_from <= self._calls else loss

    def score(self, model: torch.nn.Module, batch: TokenBatch) -> dict[str, float]:
        return {"terms": float(batch.terms), "loss": float(self.loss_sum(model, batch).detach())}


class Steps:
    """Two micro-batches a step: one with a term, one that only fills up."""

    def step(self, step: int) -> Sequence[TokenBatch]:
        row = torch.tensor([[step, -step]])
        real = TokenBatch(row, row, row, (step - 1,), terms=1, tokens=2)
        return [real, TokenBatch(row * 0, row, row, (), terms=0, tokens=0)]

    def cursor(self, step: int) -> dict[str, Any]:
        return {"next_sample": step}

    def go_back(self, cursor: dict[str, Any], *, without: tuple[int, int]) -> None:
        raise AssertionError("nothing here asks for it")


class Notes:
    """An observer and an evaluation that write down what happens."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.losses: list[float] = []
        self.seeds: list[tuple[int, int]] = []

    def on_step(self, report: StepReport) -> None:
        self.seen.append(f"step {report.step}")
        self.losses.append(report.loss)

    def on_eval(self, report: EvalReport) -> None:
        self.seen.append(f"eval {report.step}")

    def on_upload(self, report: UploadReport) -> None:
        self.seen.append(f"upload {report.step}")

    def on_save(self, report: SaveReport) -> None:
        self.seen.append(f"save {report.step}" + ("" if report.succeeded else " failed"))

    def on_guard(self, report: GuardReport) -> None:
        self.seen.append(f"{report.action} {report.step}")

    def close(self) -> None:
        self.seen.append("closed")

    def due(self, step: int) -> bool:
        return step == 2

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        return EvalReport(step=step, values={}, seconds=0.0)


class StopAt:
    def __init__(self, step: int) -> None:
        self._left = step

    def is_set(self) -> bool:
        self._left -= 1
        return self._left == 0


def _job(folder: Path, notes: Notes, *, task: Distance | None = None, stop_at: int = 0) -> Job:
    model = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    engine = PlainEngine(
        lambda: model,
        lambda named: torch.optim.SGD([p for _, p in named], lr=0.1),
        device=torch.device("cpu"),
        precision=PrecisionSection(kind="fp32", accumulate_in="fp32"),
        max_grad_norm=0.0,
    )
    return Job(
        world=Alone(),
        engine=engine,
        task=task or Distance(),
        stream=Steps(),
        checkpoints=CheckpointStore(folder, max_failed_saves=2),
        stop=StopAt(stop_at),
        total_steps=4,
        save=Every(3),
        evals=(notes,),
        observers=(notes,),
        learning_rate=lambda step: 0.1,
        seed_step=lambda step, sample: notes.seeds.append((step, sample)),
        meter=Meter(
            flops_per_token=1.0,
            peak=Peak(0.0, "unknown"),
            row_tokens_per_step=4,
            memory_bytes=lambda: 1,
            world_size=1,
        ),
        pulse=NoPulse(),
        guard=Guard(guard_rules(non_finite="stop")),
        incidents=Incidents(folder.parent / "incidents", 0, {}),
    )


def test_things_happen_in_the_order_written(tmp_path: Path) -> None:
    notes = Notes()
    assert fit(_job(tmp_path, notes), TrainState()) == "finished"
    # The last save comes before the last evaluation: what fails there loses nothing.
    assert notes.seen == (
        ["step 1", "step 2", "eval 2", "step 3", "save 3", "step 4", "save 4", "eval 4"]
    )
    assert notes.seeds[:4] == [(1, 0), (1, -1), (2, 1), (2, -1)]


def test_told_to_stop_it_saves_and_does_nothing_else(tmp_path: Path) -> None:
    notes, state = Notes(), TrainState()
    assert fit(_job(tmp_path, notes, stop_at=2), state) == "stopped"
    assert notes.seen == ["step 1", "step 2", "save 2"]  # no evaluation, although one is due
    job = _job(tmp_path, notes)
    found = job.checkpoints.load_latest(job.world, job.engine)
    assert found is not None
    assert restored(found) == state
    assert found["cursor"] == {"next_sample": 2}
    assert fit(job, restored(found)) == "finished"
    whole = Notes()
    fit(_job(tmp_path / "whole", whole), TrainState())
    assert notes.losses == whole.losses


def test_a_stop_at_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    notes = Notes()
    assert fit(_job(tmp_path, notes, stop_at=4), TrainState()) == "finished"
    assert notes.seen[-1] == "eval 4"


def test_it_pauses_where_it_is_told_to_evaluated_and_saved(tmp_path: Path) -> None:
    """And goes on from there to the same end, also under the same setting."""
    notes, state = Notes(), TrainState()
    paused = replace(_job(tmp_path, notes), pause_at=3)
    assert fit(paused, state) == "paused"
    assert notes.seen == ["step 1", "step 2", "eval 2", "step 3", "save 3", "eval 3"]
    job = replace(_job(tmp_path, notes), pause_at=3)
    found = job.checkpoints.load_latest(job.world, job.engine)
    assert found is not None
    assert fit(job, restored(found)) == "finished"
    assert notes.seen[6:] == ["step 4", "save 4", "eval 4"]
    whole = Notes()
    fit(_job(tmp_path / "whole", whole), TrainState())
    assert notes.losses == whole.losses


def test_told_to_stop_at_the_step_of_its_pause_it_is_evaluated_there(tmp_path: Path) -> None:
    notes = Notes()
    job = replace(_job(tmp_path, notes, stop_at=1), pause_at=1)
    assert fit(job, TrainState()) == "paused"
    assert notes.seen == ["step 1", "save 1", "eval 1"]


def test_a_pause_at_the_last_step_is_a_finished_run(tmp_path: Path) -> None:
    notes = Notes()
    assert fit(replace(_job(tmp_path, notes), pause_at=4), TrainState()) == "finished"
    assert notes.seen.count("eval 4") == 1


def test_a_finished_run_has_nothing_to_do(tmp_path: Path) -> None:
    notes = Notes()
    assert fit(_job(tmp_path, notes), TrainState(step=4)) == "finished"
    assert notes.seen == []


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(tmp_path: Path) -> None:
    notes = Notes()
    job = _job(tmp_path, notes, task=Distance(nan_from=7))  # two calls a step: in step 4
    with pytest.raises(NonFiniteStep, match=r"step 4: loss nan.*it was not applied"):
        fit(job, TrainState())
    assert job.checkpoints.steps() == [3]
    assert notes.seen[-1] == "skip 4"


def test_a_failed_save_is_survived_but_not_at_the_end(tmp_path: Path) -> None:
    notes = Notes()
    (tmp_path / "occupied").write_text("not a folder")
    job = _job(tmp_path / "occupied", notes, stop_at=2)
    with pytest.raises(SaveFailed, match=r"the save at step 2, the last one, failed: .*occupied"):
        fit(job, TrainState())
    assert notes.seen[-1] == "save 2 failed"
    notes = Notes()
    with pytest.raises(TooManyFailedSaves, match="2 saves in a row failed"):
        fit(_job(tmp_path / "occupied", notes), TrainState())
    assert "step 4" in notes.seen  # the one at step 3 did not end it


def test_evaluations_divide_by_all_terms() -> None:
    found = means({"terms": 4.0, "loss": 8.0, "correct": 1.0, "other": 2.0})
    assert found == {
        "loss": 2.0,
        "perplexity": pytest.approx(7.389056),
        "token_accuracy": 0.25,
        "other": 0.5,
    }
    nothing = means({"terms": 0.0, "loss": 0.0})
    assert nothing["loss"] != nothing["loss"]
