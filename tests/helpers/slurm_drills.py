"""Runs that are requeued, started, submitted twice at one moment: D30 (launch/drills/machines.py).

    python -m tests.helpers.slurm_drills

On a real Slurm of two machines made of namespaces. Prints the figures as one JSON object; exit code
3 and a sentence where there can be none.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.helpers.nodes import why_not as no_machines
from tests.helpers.slurm_cluster import Cluster, slurm_cluster, why_not
from tests.helpers.slurm_runs import RANKS, SlurmRun, slurm_run

CANNOT = 3
SEEDS = 10
_PREEMPTED_S = 4.0  # after the first thing that happens to a run, at most
_PATIENCE_S = 480.0


def double_requeue(folder: Path) -> dict[str, Any]:
    """Runs of ten seeds at once on one Slurm, of ranks that do not compute.

    A job of higher priority takes their nodes: half of them Slurm requeues at once, the others get
    time, save, and requeue themselves while it does. Around that moment each is requeued by hand,
    started again by its user, and its script is submitted a second time, at times of its seed.
    """
    with slurm_cluster(folder / "cluster", nodes=2, cpus=64, lab=True) as cluster:
        runs = [_begun(cluster, folder, seed) for seed in range(SEEDS)]
        for one in runs:
            one.until_up()
        urgent = ["sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null"]
        acts: list[tuple[float, Callable[[], object]]] = [
            (_PREEMPTED_S, lambda: cluster.run([*urgent, "--wrap=sleep 1"]))
        ]
        for seed, one in enumerate(runs):
            acts += _around(one, random.Random(seed))
        begun = time.monotonic()
        for at, act in sorted(acts, key=lambda each: each[0]):
            time.sleep(max(0.0, begun + at - time.monotonic()))
            act()
        cluster.wait(lambda: not cluster.run(["squeue", "-h"]).strip(), seconds=_PATIENCE_S)
        wrong = [f"seed {n}: {text}" for n, one in enumerate(runs) for text in _twice(one)]
        attempts = sum(len(one.lines) for one in runs)
        return {"seeds": SEEDS, "attempts": attempts, "wrong": wrong}


def _begun(cluster: Cluster, folder: Path, seed: int) -> SlurmRun:
    """Every other one gets time before Slurm requeues it."""
    what = {"all": ["finish"]} | {f"1:{rank}": ["slow", "1"] for rank in range(RANKS)}
    partition = "patient" if seed % 2 else "main"
    name = f"seed-{seed}"
    return slurm_run(cluster, folder, what, f"launch.partition={partition}", name=name).submit()


def _around(one: SlurmRun, rng: random.Random) -> list[tuple[float, Callable[[], object]]]:
    script = one.run.attempt(1).root / "submission/job.sbatch"
    return [
        (
            rng.uniform(0.0, 2 * _PREEMPTED_S),
            lambda: one.cluster.run(["scontrol", "requeue", one.job], check=False),
        ),
        (
            rng.uniform(0.0, 2 * _PREEMPTED_S),
            lambda: one.longhaul("resume", str(one.run.root), check=False),
        ),
        (
            rng.uniform(0.0, 2 * _PREEMPTED_S),
            lambda: one.cluster.run(["sbatch", str(script), sys.executable], check=False),
        ),
    ]


def _twice(one: SlurmRun) -> list[str]:
    """Whether more than one attempt lived at a time, or one was carried out twice."""
    found = []
    lines = sorted(one.lines, key=lambda line: line["attempt"])
    if [line["attempt"] for line in lines] != list(range(1, len(lines) + 1)):
        found.append(f"attempts {[line['attempt'] for line in one.lines]}")
    if [line["action"] for line in lines] != ["again"] * (len(lines) - 1) + ["done"]:
        found.append(f"attempts ended as {one.ends}")
    if {line["cause"] for line in lines[:-1]} - {"preempt"}:
        found.append(f"attempts ended as {one.ends}")
    if not all(line["started"] for line in lines):
        found.append("an attempt was ended that had not begun")
    elif any(float(b["started"]) < float(a["ended"]) for a, b in pairwise(lines)):
        found.append("two attempts at a time")
    carried = [one.job_of(line["attempt"]) for line in lines]
    if set(carried) != {one.job}:
        found.append(f"carried by jobs {carried} instead of {one.job}")
    if len(list(one.run.attempts.iterdir())) != len(lines):
        found.append("an attempt was made that nobody carried")
    if one.state != "finished":
        found.append(f"its state is {one.state}")
    return found


def main() -> int:
    if reason := why_not() or no_machines():
        print(reason, file=sys.stderr)
        return CANNOT
    with tempfile.TemporaryDirectory(prefix="longhaul-slurm-") as folder:
        print(json.dumps(double_requeue(Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
