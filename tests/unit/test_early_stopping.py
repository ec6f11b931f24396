"""When training ends because held-out rows get no better, and which step is its result then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.configs import config, values
from tests.unit.test_loop import Notes, _job
from trainer.best import Best
from trainer.checkpoint.folder import doomed
from trainer.checkpoint.store import CheckpointStore
from trainer.config.sections.regularize import EarlyStoppingSection
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import ConfigError
from trainer.job import Every, Job, TrainState, restored
from trainer.loop import fit
from trainer.reports import EvalReport


def section(patience: int = 2, **changed: Any) -> EarlyStoppingSection:
    given = {"patience": patience, "metric": "loss", "better": "lower", "margin": 0.0}
    return EarlyStoppingSection.model_validate(given | changed)


def judged(best: Best, losses: Sequence[float]) -> Best:
    for step, loss in enumerate(losses, 1):
        best.judge(step, loss)
    return best


def test_it_is_over_after_so_many_evaluations_without_a_better_one() -> None:
    best = judged(Best(section(2)), [2.0, 1.0, 1.5])
    assert (best.step, best.over) == (2, False)
    best.judge(4, 1.0)  # as good is not better
    assert (best.step, best.over) == (2, True)
    assert best.said() == (
        "early, after 2 evaluations without a better loss; the best is step 2, loss 1"
    )


def test_a_better_one_starts_the_count_anew() -> None:
    assert not judged(Best(section(2)), [2.0, 1.0, 1.5, 0.9, 0.95]).over


def test_higher_may_be_better_and_by_a_margin() -> None:
    best = judged(Best(section(2, better="higher", margin=0.1)), [0.5, 0.55, 0.7])
    assert (best.step, best.over) == (3, False)


def test_no_number_is_never_the_best() -> None:
    best = judged(Best(section(3)), [float("nan"), 2.0, float("nan"), float("inf")])
    assert (best.step, best.over) == (2, False)
    assert Best(section(1)).said() == ""


def test_without_patience_nothing_is_decided() -> None:
    for best in (Best(None), Best(section(0))):
        judged(best, [1.0, 2.0, 3.0])
        assert (best.decides, best.over, best.step, best.saved()) == (False, False, None, None)
        assert best.value_of({"loss": 1.0}) is None


def test_what_is_saved_decides_as_before() -> None:
    losses = [2.0, 1.0, 1.5, 1.2]
    for at in range(len(losses) + 1):
        best = Best(section(2), judged(Best(section(2)), losses[:at]).saved())
        for step, loss in list(enumerate(losses, 1))[at:]:
            best.judge(step, loss)
        assert best.saved() == judged(Best(section(2)), losses).saved()


def test_a_metric_that_is_not_reported_is_named_with_those_that_are() -> None:
    wanted = r"no 'exactness', but loss, accuracy(?s:.*)early_stopping\.metric=loss"
    with pytest.raises(ConfigError, match=wanted):
        Best(section(metric="exactness")).value_of({"loss": 1.0, "accuracy": 0.5})


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evals=none"], "nothing is evaluated(?s:.*)evals.held_out_rows=64"),
        (["steps.eval_every=0"], "at the end alone(?s:.*)steps.eval_every=30"),
    ],
)
def test_patience_needs_evaluations(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config("regularize.early_stopping.patience=3", *overrides)


def test_it_is_off_by_default() -> None:
    assert values()["regularize"]["early_stopping"]["patience"] == 0


def test_retention_keeps_the_best() -> None:
    assert doomed([2, 4, 6, 8], keep_last=1, keep_every=0, best=4) == [2, 6]
    assert doomed([2, 4, 6, 8], keep_last=1, keep_every=0) == [2, 4, 6]


# --- in the loop ---------------------------------------------------------------------------------


@dataclass
class Scored:
    """An evaluation at each `every`-th step; it says what `losses` has for the step."""

    losses: dict[int, float]
    every: int = 1
    made: list[int] = field(default_factory=list)

    def due(self, step: int) -> bool:
        return step % self.every == 0

    def run(self, world: World, engine: Engine, step: int) -> EvalReport:
        self.made.append(step)
        return EvalReport(step=step, values={"loss": self.losses[step]}, seconds=0.0)


LOSSES = {1: 3.0, 2: 1.0, 3: 2.0, 4: 1.5, 5: 0.5}


def job_of(folder: Path, scored: Scored, *, save: int = 100, stop_at: int = 0) -> Job:
    made = _job(folder, Notes(), stop_at=stop_at)
    store = CheckpointStore(folder, keep_last=1)
    return replace(
        made,
        evals=(scored,),
        checkpoints=store,
        save=Every(save),
        total_steps=5,
        best=Best(section(2)),
    )


def weights(job: Job) -> list[float]:
    made: list[float] = next(job.engine.model.parameters()).detach().flatten().tolist()
    return made


def resumed(folder: Path, scored: Scored, **given: Any) -> tuple[Job, TrainState]:
    job = job_of(folder, scored, **given)
    found = job.checkpoints.load_latest(job.world, job.engine)
    assert found is not None
    job.best.go_back(found["best"])
    return job, restored(found)


@pytest.mark.parametrize("save", [1, 3, 100])
def test_the_run_ends_early_with_its_best_weights(tmp_path: Path, save: int) -> None:
    alone = replace(job_of(tmp_path / "alone", Scored({}, every=9)), total_steps=2, evals=())
    fit(alone, TrainState())
    job, state = job_of(tmp_path / "run", Scored(LOSSES), save=save), TrainState()
    assert fit(job, state) == "finished"
    assert (state.step, job.best.result) == (4, 2)
    assert job.checkpoints.steps() == [2, 4]  # the best and the newest
    assert weights(job) == weights(alone)


def test_a_run_that_never_gets_worse_ends_at_its_end(tmp_path: Path) -> None:
    job, state = job_of(tmp_path, Scored({step: 1.0 / step for step in LOSSES})), TrainState()
    fit(job, state)
    assert (state.step, job.best.result, job.best.over) == (5, 5, False)


@pytest.mark.parametrize("stop_at", [1, 2, 3, 4])
def test_stopped_anywhere_it_decides_as_if_it_had_not_been(tmp_path: Path, stop_at: int) -> None:
    """The step of the stop is saved before its evaluation, which is made on the way back."""
    scored = Scored(LOSSES)
    assert fit(job_of(tmp_path, scored, stop_at=stop_at), TrainState()) == "stopped"
    assert stop_at not in scored.made
    job, state = resumed(tmp_path, scored)
    assert fit(job, state) == "finished"
    assert (state.step, job.best.result) == (4, 2)
    assert scored.made == [1, 2, 3, 4]  # each once
    again, state = resumed(tmp_path, scored)
    assert fit(again, state) == "finished"
    assert (state.step, again.best.result) == (4, 2)
    assert weights(again) == weights(job)


def test_with_more_patience_it_goes_on(tmp_path: Path) -> None:
    scored = Scored(LOSSES)
    fit(job_of(tmp_path, scored), TrainState())
    job, state = resumed(tmp_path, scored)
    judged_so_far = job.best.saved()
    job = replace(job, best=Best(section(3), judged_so_far))
    assert fit(job, state) == "finished"
    assert (state.step, job.best.result) == (5, 5)


def test_a_best_checkpoint_that_is_gone_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, state = job_of(tmp_path, Scored(LOSSES)), TrainState()
    fit(job, state)
    (tmp_path / "step-00000002").rename(tmp_path / "elsewhere")
    job, state = resumed(tmp_path, Scored(LOSSES))
    last = weights(job)
    assert fit(job, state) == "finished"
    assert job.best.result is None
    assert "no whole checkpoint of step 2, the best one, is left" in caplog.text
    assert "of which no checkpoint is left" in job.best.said()
    assert weights(job) == last


def test_a_damaged_best_checkpoint_leaves_the_last_weights(tmp_path: Path) -> None:
    job, state = job_of(tmp_path, Scored(LOSSES)), TrainState()
    fit(job, state)
    for file in (tmp_path / "step-00000002").glob("rank-*"):
        content = bytearray(file.read_bytes())
        content[-40] ^= 0xFF
        file.write_bytes(bytes(content))
    job, state = resumed(tmp_path, Scored(LOSSES))
    last = weights(job)
    fit(job, state)
    assert job.best.result is None
    assert weights(job) == last
