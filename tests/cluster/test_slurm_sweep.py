"""A sweep of jobs on a real Slurm of two nodes, one of which dies; ranks do not compute."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from launch.run.job_record import read_job
from launch.sweep.folder import SweepFiles
from launch.sweep.journal import Trial, read_trials
from tests.helpers.data import tiny_text_corpus
from tests.helpers.in_vain import value_at
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.tiny_run import TINY
from trainer.errors import Exit
from trainer.records.json_file import read_json, read_lines

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

# The best four first: those alone can be ahead when they arrive, in whatever order they do, so that
# at most four run whole and the other eight end at the first rung: 1,160 of 3,240 steps.
_RATES = (2e-3, 1e-3, 5e-4, 3e-3, 1e-4, 1e-2, 3e-2, 6e-5, 3e-5, 6e-2, 1e-1, 1e-5)
_STEPS, _RUNGS, _RANKS = 270, (10, 30, 90), 2
_BUDGET_H = 2.0
_SETTINGS = (
    f"optimizer.learning_rate={','.join(map(str, _RATES))}",
    *("sweep=asha", "sweep.sampler=grid", "sweep.trials=0", "sweep.name=lr", "sweep.concurrency=4"),
    *("sweep.pruner.first_step=10", "sweep.poll_s=0.5", f"sweep.budget.gpu_hours={_BUDGET_H}"),
    *(f"steps.total={_STEPS}", "steps.eval_every=10", "steps.save_every=10"),
    *("launch=slurm", "launch.gpus=none", "launch.grace_s=20", "launch.cpus_per_rank=2"),
    "launch.environment=[PATH,HOME,PYTHONPATH,RUNGS]",
    f"resources.ranks_per_node={_RANKS}",
)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with slurm_cluster(tmp_path / "cluster", nodes=2, cpus=6, slurmd_timeout=5, lab=True) as made:
        yield made


def test_a_sweep_of_jobs_survives_its_sweeper_and_a_node(cluster: Cluster, tmp_path: Path) -> None:
    """One job of two ranks fits on a node, so two of four wait in the queue."""
    files, env = SweepFiles(tmp_path / "runs" / "lr"), cluster.env({"RUNGS": "10 30 90"})
    sweep = [sys.executable, "-m", "tests.helpers.swept"]
    words = [*TINY, *_SETTINGS, f"data.store_root={tmp_path / 'stores'}"]
    words += [f"run.root={tmp_path / 'runs'}"]
    words += [f"data.sources.files.paths=[{tiny_text_corpus(tmp_path / 'corpus', documents=60)}]"]
    log = tmp_path / "sweeper.log"
    with sweeping(cluster, [*sweep, *words], log, env) as sweeper:
        cluster.wait(lambda: judged(files) >= 2 or sweeper.poll() is not None)
        assert sweeper.poll() is None, log.read_text()
        sweeper.send_signal(signal.SIGKILL)  # its jobs go on
        sweeper.wait()
    queued_is_told_from_active(cluster, files)
    hold = files.root / "hold"
    hold.touch()  # who begins now waits before its first step
    again = [*sweep, "lr", "--root", str(tmp_path / "runs")]
    with sweeping(cluster, again, log, env) as sweeper:
        victim = cluster.wait(lambda: held_on(files, "node2"))
        cluster.lab.node("node2").power_off()
        hold.unlink()
        cluster.wait(lambda: sweeper.poll() is not None, seconds=900.0)
    said = log.read_text()
    assert sweeper.returncode == Exit.DONE, said
    trials = read_trials(files.trials)
    assert {one.state for one in trials.values()} <= {"finished", "pruned"}, said
    assert len(trials) == len(_RATES)
    the_best_is_that_of_the_full_grid(trials)
    it_took_no_more_than_two_fifths_of_its_steps(files)
    each_has_one_run_and_its_cost_is_counted(files, trials)
    assert len(list(files.run(victim).attempts.iterdir())) > 1


@contextmanager
def sweeping(
    cluster: Cluster, words: list[str], log: Path, env: dict[str, str]
) -> Iterator[subprocess.Popen[Any]]:
    with log.open("a") as out:
        process = cluster.popen(words, env=env, stdout=out, stderr=out)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def judged(files: SweepFiles) -> int:
    return sum(bool(one.level or one.told_to) for one in read_trials(files.trials).values())


def held_on(files: SweepFiles, node: str) -> int:
    """A trial that has begun there and is not about to be judged; 0: none."""
    for number, one in read_trials(files.trials).items():
        attempt = files.run(number).attempt(1)
        hosts = [read_json(path)["host"] for path in attempt.root.glob("nodes/node-*.json")]
        has_begun = one.state == "active" and hosts == [node] and attempt.started.exists()
        last = max((line["step"] for line in steps_of(files, number)), default=0)
        if has_begun and not one.told_to and one.level == sum(rung <= last for rung in _RUNGS):
            return number
    return 0


def queued_is_told_from_active(cluster: Cluster, files: SweepFiles) -> None:
    words = [sys.executable, "-m", "launch", "status", "lr", "--root", str(files.root.parent)]
    found = json.loads(cluster.run([*words, "--json"]))
    assert found["state"] == "stopped"
    assert {row["state"] for row in found["rows"]} <= {"active", "queued", "pruned"}
    assert 0.0 <= found["gpu_hours"] < _BUDGET_H


def the_best_is_that_of_the_full_grid(trials: dict[int, Trial]) -> None:
    values = {n: value_at(rate, _STEPS) for n, rate in enumerate(_RATES, 1)}
    best = min(values, key=lambda n: values[n])
    finished = {n: one.values for n, one in trials.items() if one.state == "finished"}
    assert min(finished, key=lambda n: finished[n]) == best
    assert finished[best] == (values[best],)


def it_took_no_more_than_two_fifths_of_its_steps(files: SweepFiles) -> None:
    """Those that were made twice because a node went are counted twice."""
    made = sum(len(steps_of(files, n)) for n in read_trials(files.trials))
    print(f"{made} of {len(_RATES) * _STEPS} steps: {made / len(_RATES) / _STEPS:.1%}")
    assert made <= 0.4 * len(_RATES) * _STEPS


def steps_of(files: SweepFiles, number: int) -> list[dict[str, Any]]:
    return [x for x in read_lines(files.run(number).metrics) if x["kind"] == "step"]


def each_has_one_run_and_its_cost_is_counted(files: SweepFiles, trials: dict[int, Trial]) -> None:
    jobs = [read_job(files.run(n).attempt(1)) for n in trials]
    assert len({job.job for job in jobs if job}) == len(trials)
    for number, one in trials.items():
        assert max(step["step"] for step in steps_of(files, number)) >= _RUNGS[0]
        assert one.rank_seconds > 0
    assert sum(one.rank_seconds for one in trials.values()) <= _BUDGET_H * 3600
