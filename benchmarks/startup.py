"""What starting costs: the command, and the way from process start to the first step.

    python benchmarks/startup.py            CPU seconds and wall of the light commands
    python benchmarks/startup.py --train    also two real ranks to their first step, by phase

Promises: `longhaul --help` under 0.3 s and `train --dry-run` under 1 s of CPU, neither with torch
in the process. The first call after an install writes .pyc files and is not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from trainer.records.json_file import read_lines

PROMISED_CPU_S = {"--help": 0.3, "train --dry-run": 1.0}
_HEAVY = (
    "torch",
    "deepspeed",
    "transformers",
    "ray",
    "wandb",
    "numpy",
    "pydantic",
    "hydra",
    "rich",
)
_PROBE = """
import json, sys, time
from launch.__main__ import main
try:
    code = main(sys.argv[1:])
finally:
    found = [name for name in {heavy!r} if name in sys.modules]
    print(json.dumps([time.process_time(), found]), file=sys.stderr)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    kept = True
    print(f"{'command':<20}{'CPU s':>8}{'wall s':>8}  loaded")
    for line, promised in PROMISED_CPU_S.items():
        cpu, wall, loaded = measured(line.split(), repeats=given.repeats)
        kept &= cpu < promised and "torch" not in loaded
        print(f"{line:<20}{cpu:>8.3f}{wall:>8.3f}  {' '.join(loaded) or '-'}   (< {promised} s)")
    if given.train:
        show_first_step()
    print("kept" if kept else "NOT KEPT")
    return 0 if kept else 1


def measured(arguments: list[str], *, repeats: int) -> tuple[float, float, list[str]]:
    """Median CPU and wall seconds of a process of its own, interpreter start included."""
    cpus, walls = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            before, began = os.times(), time.monotonic()
            ended = subprocess.run(
                [sys.executable, "-c", _PROBE.format(heavy=_HEAVY), *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                check=True,
                env=_environment(),
            )
            after = os.times()
            if repeat == 0:
                continue
            walls.append(time.monotonic() - began)
            user = after.children_user - before.children_user
            cpus.append(user + after.children_system - before.children_system)
    loaded: list[str] = json.loads(ended.stderr.splitlines()[-1])[1]
    return statistics.median(cpus), statistics.median(walls), loaded


def show_first_step() -> None:
    """Two ranks of the default run, shrunk to two steps; the data is prepared beforehand."""
    settings = ["steps.total=2", "steps.log_every=1", "steps.save_every=0", "steps.eval_every=0"]
    settings += ["schedule.warmup_steps=1", "evals=none", "resources.ranks_per_node=2"]
    command = [sys.executable, "-m", "launch"]
    with tempfile.TemporaryDirectory() as folder:
        for verb in (["data", "prepare"], ["train"]):
            began = time.time()
            subprocess.run(
                [*command, *verb, *settings],
                cwd=folder,
                check=True,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
        lines = list(read_lines(Path(folder) / "runs" / "first-run" / "metrics.jsonl"))
    attempt = next(line for line in lines if line["kind"] == "attempt")
    first = next(line for line in lines if line["kind"] == "step")
    print("\ncommand to first step, 2 ranks (rank 0's wall seconds)")
    print(f"  {'launcher':<12}{attempt['process_started'] - began:>8.2f}")
    for phase, seconds in attempt["startup_s"].items():
        print(f"  {phase:<12}{seconds:>8.2f}")
    print(f"  {'first step':<12}{first['step_s']:>8.2f}")
    print(f"  {'in all':<12}{first['time'] - began:>8.2f}")


def _environment() -> dict[str, str]:
    """The checkout this file stands in, installed or not."""
    return dict(os.environ) | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


if __name__ == "__main__":
    sys.exit(main())
