"""A sweep of real runs on this machine: rung by rung, its sweeper killed in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.compose import compose
from launch.run.attempts import read_lines_of
from launch.run.run_folder import attempts
from launch.sweep.folder import SweepFiles
from launch.sweep.journal import Trial, read_trials
from launch.sweep.samplers import AtRandom
from launch.sweep.space import Interval, Space
from tests.helpers.data import tiny_text_corpus
from tests.helpers.tiny_run import TINY
from trainer.records.json_file import read_lines

_PATIENCE_S = 400.0
_SEARCHED = Interval("optimizer.learning_rate", 1e-5, 1e-2, is_log=True)
_SWEEP = (
    *("engine=plain", "resources.ranks_per_node=1", "precision=fp32"),
    *("steps.total=12", "steps.eval_every=4", "sweep=halving", "sweep.name=lr", "sweep.trials=3"),
    *("sweep.pruner.first_step=4", "sweep.concurrency=2", "sweep.poll_s=0.2"),
    "optimizer.learning_rate=tag(log,interval(1e-5,1e-2))",
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    longhaul("stop", "lr", "--root", str(tmp_path / "runs"), check=False)


def words(folder: Path) -> list[str]:
    corpus = tiny_text_corpus(folder / "corpus", documents=60)
    return [
        *TINY,
        f"data.sources.files.paths=[{corpus}]",
        f"data.store_root={folder / 'stores'}",
        f"run.root={folder / 'runs'}",
        *_SWEEP,
    ]


def longhaul(*arguments: str, check: bool = True) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "launch", *arguments],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.timeout(1500)  # four starts of real runs, on a machine that has much else to do
def test_a_sweep_of_real_runs_whose_sweeper_is_killed(folder: Path) -> None:
    files = SweepFiles(folder / "runs" / "lr")
    killed_at_the_first_rung(files, words(folder))
    said = longhaul("sweep", "lr", "--root", str(folder / "runs"))
    assert "lr: finished; 3 of 3 trials (1 finished, 2 pruned)" in said
    trials = read_trials(files.trials)
    best = the_best_went_on(files, trials)
    same_trials_as_a_sweep_that_was_left_alone(trials)
    data_was_prepared_once(files, folder / "stores")
    costs_are_those_of_the_attempts(files, trials)
    status = json.loads(longhaul("status", "lr", "--root", str(folder / "runs"), "--json"))
    assert [row["trial"] for row in status["best"]] == [best.number]
    dirs = [str(files.root / "conf")]
    recipe = compose(["experiment=best-lr"], config_dirs=dirs).values
    assert recipe["optimizer"]["learning_rate"] == best.point[_SEARCHED.name]


def killed_at_the_first_rung(files: SweepFiles, command: list[str]) -> None:
    sweeper = subprocess.Popen(
        [sys.executable, "-m", "launch", "sweep", *command], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _PATIENCE_S
    while not any(one.rungs for one in read_trials(files.trials).values()):
        assert sweeper.poll() is None, "it ended early"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweeper.send_signal(signal.SIGKILL)
    sweeper.wait()


def the_best_went_on(files: SweepFiles, trials: dict[int, Trial]) -> Trial:
    """The one that was ahead at the rung, and it alone, has a last step."""
    (best,) = [one for one in trials.values() if one.state == "finished"]
    assert best.rungs[4] == min(one.rungs[4] for one in trials.values())
    said = {number: evaluations(files.run(number).metrics) for number in trials}
    assert best.values == (said[best.number][12],)
    assert {n: one.rungs[4] for n, one in trials.items()} == {n: said[n][4] for n in trials}
    return best


def evaluations(metrics: Path) -> dict[int, float]:
    return {one["step"]: one["eval_loss"] for one in read_lines(metrics) if "eval_loss" in one}


def same_trials_as_a_sweep_that_was_left_alone(trials: dict[int, Trial]) -> None:
    sampler = AtRandom(Space((_SEARCHED,)), seed=1)
    assert {n: dict(one.point) for n, one in trials.items()} == {
        n: sampler.ask(n) for n in (1, 2, 3)
    }


def data_was_prepared_once(files: SweepFiles, stores: Path) -> None:
    """Two trials began at once, and there was no store yet."""
    assert len([one for one in stores.iterdir() if (one / "manifest.json").exists()]) == 1
    logs = [files.log(number).read_text() for number in (1, 2, 3)]
    assert sum(log.count("training a tokenizer") for log in logs) == 1


def costs_are_those_of_the_attempts(files: SweepFiles, trials: dict[int, Trial]) -> None:
    """No attempt is missing in the bill, and none is in it twice."""
    for number, trial in trials.items():
        run = files.run(number)
        ended = read_lines_of(run)
        assert len(ended) == len(attempts(run))
        trained = sum(one["ended"] - (one["started"] or one["ended"]) for one in ended)
        assert trained <= trial.rank_seconds
        first = json.loads(run.ledger(0).read_text().splitlines()[0])
        assert trial.rank_seconds <= time.time() - first["time"]
