"""One run of real ranks on a real Slurm that is preempted, loses a rank, runs out of time and loses
a node: it ends as if nothing had happened."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.run.run_folder import read_record
from tests.helpers.data import tiny_text_corpus
from tests.helpers.slurm_cluster import Cluster, slurm_cluster
from tests.helpers.slurm_runs import ends_of, pid_of
from tests.helpers.tiny_run import TINY
from trainer.records.json_file import read_json, read_lines
from trainer.records.run_files import RunFiles

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1500)]

_STEPS = 400
_PATIENCE_S = 240.0  # for an attempt to begin on a busy machine
_SETTINGS = (
    f"steps.total={_STEPS}",
    "steps.save_every=20",
    "engine=zero2",
    "batch.micro_batch_size=1",
    "evals=none",
    "observers.console.enabled=false",
    "observers.wandb.mode=offline",
    "resources.collective_timeout_s=60",
    "checkpoint.keep_last=3",
)


def test_a_run_survives_what_happens_to_jobs_to_the_last_bit(tmp_path: Path) -> None:
    times = {"slurmd_timeout": 5, "kill_wait": 25}
    with slurm_cluster(tmp_path / "cluster", nodes=3, lab=True, **times) as cluster:
        corpus = tiny_text_corpus(tmp_path / "corpus", documents=60)
        shared = [
            *TINY,
            *_SETTINGS,
            f"data.sources.files.paths=[{corpus}]",
            f"data.store_root={tmp_path / 'stores'}",
            f"run.root={tmp_path / 'runs'}",
        ]
        _train(cluster, *shared, "run.name=calm", "resources.ranks_per_node=4", "restart=off")
        story = [*shared, "launch=slurm", "launch.gpus=none", "launch.grace_s=20"]
        story += ["run.name=story", "resources.nodes=2", "resources.ranks_per_node=2"]
        said = _train(cluster, *story)
        job = re.search(r"job (\d+) is queued", said)
        assert job is not None, said
        run = RunFiles(tmp_path / "runs" / "story")
        _live_through(cluster, run, job[1])
        assert cluster.until_state(job[1], "COMPLETED", "FAILED", seconds=_PATIENCE_S), _words(run)
        assert [line["cause"] for line in read_lines(run.attempts_log)] == [
            *("preempt", "crash", "time_limit", "node"),
            None,
        ], _words(run)
        calm = RunFiles(tmp_path / "runs" / "calm")
        assert _losses(run) == _losses(calm)
        assert ends_of(run)[-1] == (5, "done", 0, None)
        _is_one_run(run)
        _lost_no_more_than_promised(run)


def _train(cluster: Cluster, *settings: str) -> str:
    words = [sys.executable, "-m", "launch", "train", *settings]
    return cluster.login.run(words, env=cluster.env(), timeout=400.0)


def _live_through(cluster: Cluster, run: RunFiles, job: str) -> None:
    _until_step(cluster, run, attempt=1, step=50)
    urgent = ["--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null"]
    cluster.run(["sbatch", *urgent, "--wrap=sleep 1"])
    _until_step(cluster, run, attempt=2, step=110)
    os.kill(pid_of(run, 3, program=b"trainer.worker"), signal.SIGKILL)
    _until_step(cluster, run, attempt=3, step=170)
    cluster.run(["scancel", "--signal=USR1", job])  # what Slurm sends before the time limit
    _until_step(cluster, run, attempt=4, step=230)
    nodes = run.attempt(4).root / "nodes"
    cluster.lab.node(read_json(nodes / "node-00001.json")["host"]).power_off()


def _until_step(cluster: Cluster, run: RunFiles, *, attempt: int, step: int) -> None:
    def there() -> bool:
        begun = run.attempt(attempt).started.exists()
        return begun and max(_losses(run), default=0) >= step

    cluster.wait(there, seconds=_PATIENCE_S)


def _losses(run: RunFiles) -> dict[int, float]:
    """By step; a step that was made twice came out the same."""
    found: dict[int, float] = {}
    for line in _steps(run):
        known = found.setdefault(line["step"], line["loss"])
        assert known == line["loss"], line["step"]
    return found


def _steps(run: RunFiles) -> list[dict[str, Any]]:
    return [x for x in read_lines(run.metrics) if x.get("kind", "step") == "step" and "loss" in x]


def _is_one_run(run: RunFiles) -> None:
    assert sorted(path.name for path in run.attempts.iterdir()) == [f"000{n}" for n in range(1, 6)]
    ids = {path.name.rpartition("-")[2] for path in run.wandb.glob("offline-run-*")}
    assert ids == {read_record(run).run_id}
    seeds = {read_json(run.attempt(n).plan)["config"]["run"]["seed"] for n in range(1, 6)}
    assert len(seeds) == 1


def _lost_no_more_than_promised(run: RunFiles) -> None:
    """Nothing where it could save; one interval where it could not."""
    starts = [read_json(run.attempt(n).started)["step"] for n in range(1, 6)]
    ended = [line["checkpoint_step"] for line in read_lines(run.attempts_log)]
    assert starts[1:] == ended[:-1]
    assert len(_steps(run)) - _STEPS <= 2 * (20 + 1)


def _words(run: RunFiles) -> str:
    return "".join(path.read_text() for path in sorted(run.root.glob("slurm-*.out")))
