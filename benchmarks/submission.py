"""What handing a run over to Slurm costs besides Slurm's own time.

    python benchmarks/submission.py [--runs N] [--delay S]

Slurm's commands are stand-ins that answer after S seconds (0.05) and write down when they ran; the
command's wall time in which none of them ran is ours. N runs (1) go as one array (`train -m`).
Promise: under 1 s for one run, on a quiet machine. The first call writes .pyc files and is not
counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMISED_S = 1.0
_STAND_IN = """#!/bin/bash
echo "$(date +%s.%N) begin" >> {log}; sleep {delay}
case "$0 $*" in
  *sinfo*) echo 'main*|infinite|64|(null)|64';;
  *test-only*) echo 'sbatch: Job 2 to start at 2026-01-01T00:00:00' >&2;;
  *sbatch*) echo 12;;
esac
echo "$(date +%s.%N) end" >> {log}
"""
_SETTINGS = ("launch=slurm", "launch.gpus=none", "resources.nodes=2", "batch.micro_batch_size=4")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--delay", type=float, default=0.05)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    measured = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = _environment(folder, given.delay)
        _submit(folder, env, runs=1, number=0)  # prepares the data, writes .pyc files
        for number in range(1, given.repeats + 1):
            measured.append(_submit(folder, env, runs=given.runs, number=number))
    wall, cpu, slurm = (statistics.median(column) for column in zip(*measured, strict=True))
    print(f"{given.runs} runs: {wall:.2f} s in all, {slurm:.2f} s of them Slurm's stand-ins,")
    print(f"ours: {wall - slurm:.2f} s of wall time; {cpu:.2f} s of CPU time with all children")
    kept = given.runs > 1 or wall - slurm < PROMISED_S
    print("promise kept" if kept else f"promise broken: {PROMISED_S} s")
    return 0 if kept else 1


def _submit(
    folder: Path, env: dict[str, str], *, runs: int, number: int
) -> tuple[float, float, float]:
    """Seconds of wall time, of CPU time, and of the scheduler's commands."""
    log = folder / "log"
    log.write_text("")
    several = ["-m", f"run.seed=range(0,{runs})"] if runs > 1 else []
    argv = [sys.executable, "-m", "launch", "train", *several, *_SETTINGS]
    argv += [f"run.root={folder}/runs", f"run.name=run-{number}", f"data.store_root={folder}/store"]
    used, begun = _children_s(), time.monotonic()
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    wall = time.monotonic() - begun
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return wall, _children_s() - used, _covered_s(log.read_text())


def _environment(folder: Path, delay: float) -> dict[str, str]:
    tools = folder / "bin"
    tools.mkdir()
    for name in ("sbatch", "sinfo", "squeue", "scancel"):
        (tools / name).write_text(_STAND_IN.format(log=folder / "log", delay=delay))
        (tools / name).chmod(0o755)
    env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return env | {"PATH": f"{tools}:{env['PATH']}"}


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _covered_s(log: str) -> float:
    """Seconds in which at least one command ran."""
    events = sorted((float(line.split()[0]), line.split()[1]) for line in log.splitlines())
    covered, running, since = 0.0, 0, 0.0
    for at, what in events:
        if what == "begin":
            since = since if running else at
            running += 1
        else:
            running -= 1
            covered += 0.0 if running else at - since
    return covered


if __name__ == "__main__":
    sys.exit(main())
