"""What starting costs: the command, and the way from process start to the first step.

    python benchmarks/startup.py            CPU seconds and wall of the light commands
    python benchmarks/startup.py --train    also two real ranks to their first step, by phase, and
                                            from the death of one to the first step after it

Promises: `longhaul --help` under 0.3 s and `train --dry-run` under 1 s of CPU, neither with torch
in the process. The first call after an install writes .pyc files and is not counted. From the death
of a rank to the next step: 5 s from a standby, 15 s without, on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from trainer.records.json_file import read_json, read_lines

PROMISED_CPU_S = {"--help": 0.3, "train --dry-run": 1.0}
PROMISED_RESTART_S = {True: 5.0, False: 15.0}  # with a standby, without
_STEPS = 400  # enough for a kill in the middle
_KILL_AFTER = 12
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
        for standby in (True, False):
            kept &= show_starts(standby=standby)
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


def show_starts(*, standby: bool) -> bool:
    """Two ranks of the default run: their start, and their restart after one is killed."""
    settings = [f"steps.total={_STEPS}", "steps.log_every=1", "steps.save_every=10", "evals=none"]
    settings += ["steps.eval_every=0", "schedule.warmup_steps=1", "resources.ranks_per_node=2"]
    settings += [f"restart.standby={str(standby).lower()}", "data.sequence_length=128"]
    command = [sys.executable, "-m", "launch"]
    with tempfile.TemporaryDirectory() as folder:
        env, run = _environment(), Path(folder) / "runs" / "first-run"
        with Path(os.devnull).open("wb") as null:

            def begin(*verb: str) -> subprocess.Popen[bytes]:
                argv = [*command, *verb, *settings]
                return subprocess.Popen(argv, cwd=folder, env=env, stdout=null, stderr=null)

            begin("data", "prepare").wait()
            before, began = os.times(), time.time()
            train = begin("train")
            first = _step(train, run, attempt=1, step=1)
            _step(train, run, attempt=1, step=_KILL_AFTER)
            os.kill(int(read_json(run / "attempts" / "0001" / "pids.json")["1"]), signal.SIGKILL)
            killed = time.time()
            again = _step(train, run, attempt=2, step=1)
            train.send_signal(signal.SIGTERM)
            train.wait(timeout=120)
            after = os.times()
        lines = [x for x in read_lines(run / "metrics.jsonl") if x["kind"] == "attempt"]
    took, promised = float(again["time"]) - killed, PROMISED_RESTART_S[standby]
    rows = [
        ("before it", lines[0]["process_started"] - began, lines[1]["process_started"] - killed)
    ]
    rows += [(phase, *(x["startup_s"][phase] for x in lines)) for phase in lines[0]["startup_s"]]
    rows += [("first step", first["step_s"], again["step_s"])]
    rows += [("in all", first["time"] - began, took)]
    how = "forked from a standby" if standby else "each imports for itself"
    print(f"\n2 ranks, {how}: rank 0's wall seconds\n  {'phase':<12}{'start':>8}{'restart':>9}")
    for name, start, restart in rows:
        print(f"  {name:<12}{start:>8.2f}{restart:>9.2f}")
    used = sum(after[2:4]) - sum(before[2:4])
    print(
        f"  (restart < {promised:.0f} s)   {used:.1f} CPU s for both, {_KILL_AFTER} steps included"
    )
    return took < promised


def _step(train: subprocess.Popen[bytes], run: Path, *, attempt: int, step: int) -> dict[str, Any]:
    """The first line of that attempt at that step or later, once it is there."""
    while train.poll() is None:
        for line in read_lines(run / "metrics.jsonl"):
            if line["kind"] == "step" and line["attempt"] == attempt and line["step"] >= step:
                return dict(line)
        time.sleep(0.02)
    raise RuntimeError(f"the run ended with {train.returncode} before step {step}")


def _environment() -> dict[str, str]:
    """The checkout this file stands in, installed or not."""
    return dict(os.environ) | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}


if __name__ == "__main__":
    sys.exit(main())
