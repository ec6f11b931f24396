"""A chain of three jobs, of which Slurm ends two at their time limit: drill D29.

    python -m tests.helpers.slurm_limits

On a real Slurm of two machines made of namespaces, with real ranks on both. Prints the figures as
one JSON object; exit code 3 and a sentence where there can be none (launch/drills/machines.py).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from launch.drills.oracle.digest import wrong_tensors
from tests.helpers.data import tiny_text_corpus
from tests.helpers.nodes import REPOSITORY
from tests.helpers.nodes import why_not as no_machines
from tests.helpers.slurm_cluster import Cluster, slurm_cluster, why_not
from tests.helpers.slurm_runs import ends_of
from tests.helpers.tiny_run import TINY
from trainer.errors import Exit
from trainer.faultpoints import ENVIRONMENT, Fault, as_text
from trainer.records.attempt import read_stop
from trainer.records.json_file import read_json, read_lines
from trainer.records.run_files import RunFiles

CANNOT = 3
_PATIENCE_S = 500.0
_JOBS, _LIMITED = 3, 2  # jobs of the chain; those that do not get to the end
# Slurm looks every half minute which jobs are near their limit, and says so as much earlier as that
# may make it late. Until then each step takes three seconds; those that are left do not.
_STEPS, _SLOW_FROM, _A_STEP_S = 40, 4, 3.0
_LEAD_S, _LEFT_MINUTES = 150, 3
_SETTINGS = (
    f"steps.total={_STEPS}",
    "steps.save_every=15",
    "engine=zero2",
    "batch.micro_batch_size=1",
    "evals=none",
    "observers.console.enabled=false",
    "resources.collective_timeout_s=60",
    "drills.enabled=true",
)


def time_limit(folder: Path) -> dict[str, Any]:
    """The chain, and the same run in one go beside it."""
    with slurm_cluster(folder / "cluster", nodes=2, lab=True) as cluster:
        corpus = tiny_text_corpus(folder / "corpus", documents=60)
        shared = [
            *TINY,
            *_SETTINGS,
            f"data.sources.files.paths=[{corpus}]",
            f"data.store_root={folder / 'stores'}",
            f"run.root={folder / 'runs'}",
        ]
        run, alone = RunFiles(folder / "runs/chained"), RunFiles(folder / "runs/alone")
        slow = _Slow(folder / "slow")
        jobs = _submitted(cluster, shared, slow)
        apart = _begun_alone(cluster, shared)
        waited = [_come_to_its_limit(cluster, run, n, jobs[n - 1]) for n in range(1, _LIMITED + 1)]
        slow.no_more()
        states = [cluster.until_state(job, *_OVER, seconds=_PATIENCE_S) for job in jobs]
        said, _ = apart.communicate(timeout=_PATIENCE_S)
        wrong = _differing(run, alone, states)
        wrong += [] if apart.returncode == Exit.DONE else [f"left alone: {said[-500:]}"]
        ends = [line["step"] for line in _steps(run)]
        return {"jobs": len(jobs), "steps": len(ends), "waited_s": waited, "wrong": wrong}


class _Slow:
    """Steps that wait, each once in the life of the run: its mark is there or made by hand."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._tokens = {step: folder / f"step-{step}" for step in range(_SLOW_FROM, _STEPS)}

    @property
    def faults(self) -> str:
        return as_text(
            [
                Fault("step.begin", "sleep", rank=0, step=step, value=_A_STEP_S, token=str(token))
                for step, token in self._tokens.items()
            ]
        )

    def no_more(self) -> None:
        for token in self._tokens.values():
            token.with_name(f"{token.name}.0").touch()


# A chain's job that leaves the rest to the next one ends with the code for "saved".
_OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
_AS_IT_SHOULD = ["FAILED"] * _LIMITED + ["COMPLETED"]


def _submitted(cluster: Cluster, shared: list[str], slow: _Slow) -> list[str]:
    """The chain's jobs, in their order."""
    words = [*shared, "run.name=chained", "launch=slurm", "launch.gpus=none", "launch.grace_s=60"]
    words += [f"launch.signal_lead_s={_LEAD_S}", f"launch.chain={_JOBS}", "launch.requeue=false"]
    words += ["resources.nodes=2", "resources.ranks_per_node=1"]
    words += [f"launch.environment=[PATH,HOME,PYTHONPATH,OMP_NUM_THREADS,{ENVIRONMENT}]"]
    env = cluster.env({ENVIRONMENT: slow.faults})
    said = cluster.login.run(_train(words), env=env, timeout=_PATIENCE_S)
    found = re.search(r"jobs ([\d, and]+)", said)
    jobs = re.findall(r"\d+", found[1]) if found else []
    assert len(jobs) == _JOBS, said
    return jobs


def _begun_alone(cluster: Cluster, shared: list[str]) -> subprocess.Popen[str]:
    words = [*shared, "run.name=alone", "resources.ranks_per_node=2"]
    out = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return cluster.popen(_train(words), **out)


def _train(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "launch", "train", *words]


def _come_to_its_limit(cluster: Cluster, run: RunFiles, attempt: int, job: str) -> float:
    """Set its job a limit once it trains, and wait. Seconds from then on until Slurm's signal."""

    def trains() -> bool:
        return any(x["attempt"] == attempt and x["step"] > _SLOW_FROM for x in _steps(run))

    cluster.wait(trains, seconds=_PATIENCE_S)
    used = cluster.run(["squeue", "-h", "-j", job, "-o", "%M"]).strip()  # minutes:seconds
    minutes = int(used.rpartition(":")[0]) + _LEFT_MINUTES
    begun = time.time()
    cluster.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"])
    cluster.wait(lambda: len(list(read_lines(run.attempts_log))) >= attempt, seconds=_PATIENCE_S)
    stop = read_stop(run.attempt(attempt).stop)
    return stop.time - begun if stop else -1.0


def _differing(run: RunFiles, alone: RunFiles, states: list[str]) -> list[str]:
    """What is not as in the run that was left alone."""
    found = [] if states == _AS_IT_SHOULD else [f"jobs ended as {states}"]
    limits = [(n, "again", int(Exit.SAVED), "time_limit") for n in range(1, _LIMITED + 1)]
    if (ends := ends_of(run)) != [*limits, (_JOBS, "done", int(Exit.DONE), None)]:
        found.append(f"attempts ended as {ends}")
    for number in range(1, len(ends) + 1):
        codes = set(read_json(run.attempt(number).ended)["codes"].values())
        if codes != {int(Exit.DONE if number == _JOBS else Exit.SAVED)}:
            found.append(f"ranks of attempt {number} ended with {codes}")
    # In the order they were made: a step that was made twice stands there twice.
    ours, theirs = ([(x["step"], x["loss"]) for x in _steps(each)] for each in (run, alone))
    if ours != theirs or len(ours) != _STEPS:
        found.append("steps or losses differ")
    words = [str(run.root), str(alone.root), "--json"]
    argv = [sys.executable, "-m", "trainer.commands.checkpoint", "diff", *words]
    said = subprocess.run(argv, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return found + wrong_tensors(json.loads(said.stdout), step=_STEPS)


def _steps(run: RunFiles) -> list[dict[str, Any]]:
    return [x for x in read_lines(run.metrics) if x.get("kind") == "step"]


def main() -> int:
    if reason := why_not() or no_machines():
        print(reason, file=sys.stderr)
        return CANNOT
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="longhaul-limits-") as folder:
        print(json.dumps(time_limit(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
