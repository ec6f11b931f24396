"""Timing on a machine that others use too: arms take turns, and only ratios of neighbours count.

In one round every arm does one step; the order turns round in every second one. A round's ratio
compares two steps that lie seconds apart, so a slow minute slows both. The result is the median of
the rounds' ratios and its interval.

Two clocks. `wall` is what a user waits. `cpu` is the process's own CPU time (of all ranks): other
processes can hardly stretch it, but it does not see waiting. On a busy machine believe `cpu`.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from math import comb
from pathlib import Path
from typing import Any, Literal

Clock = Literal["wall", "cpu"]
CLOCKS: tuple[Clock, ...] = ("cpu", "wall")
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Seconds:
    wall: float
    cpu: float


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios. [low, high] covers the true median with 95% confidence.

    By order statistics, so for any distribution; below 6 rounds no such interval exists and the
    range stands there.
    """

    median: float
    low: float
    high: float


def timed(act: Callable[[], object]) -> Seconds:
    cpu, wall = time.process_time(), time.perf_counter()
    act()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(
    arms: Mapping[str, Callable[[], Seconds]], rounds: int, *, warm: int = 1
) -> dict[str, list[Seconds]]:
    """Each arm's steps, round by round. The first `warm` rounds are done and not counted:
    page faults, packed weights and thread pools make a first step 2 to 5 times slower."""
    names = list(arms)
    found: dict[str, list[Seconds]] = {name: [] for name in names}
    for number in range(rounds + warm):
        order = names if number % 2 == 0 else names[::-1]
        took = {name: arms[name]() for name in order}
        what = "warm" if number < warm else f"{number - warm + 1}/{rounds}"
        _say(what + "".join(f"  {name} {took[name].cpu:.3f}" for name in names))
        if number >= warm:
            for name in names:
                found[name].append(took[name])
    return found


def speedup(times: Mapping[str, Sequence[Seconds]], arm: str, *, over: str, clock: Clock) -> Ratio:
    """How many times as fast `arm` is as `over`."""
    pairs = zip(times[over], times[arm], strict=True)
    return ratio_of([getattr(o, clock) / getattr(a, clock) for o, a in pairs])


def ratio_of(ratios: Sequence[float]) -> Ratio:
    ordered = sorted(ratios)
    skip = _ranks_outside(len(ordered))
    return Ratio(statistics.median(ordered), ordered[skip], ordered[-1 - skip])


def _say(line: str) -> None:
    """Progress: a slow machine is no reason to think that nothing happens."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)


def _ranks_outside(count: int) -> int:
    """How many of the smallest and of the largest of `count` values the interval leaves out.

    [x(s+1), x(count-s)] misses the median with probability 2 P(Binomial(count, 1/2) <= s).
    """
    skip = 0
    while 2 * sum(comb(count, k) for k in range(skip + 2)) / 2**count <= 1 - CONFIDENCE:
        skip += 1
    return skip


def judged(what: str, found: Ratio, *, promised: float) -> bool:
    """Say it. The median decides; an interval that holds the promise in it says: more rounds."""
    kept = found.median >= promised
    sure = found.low >= promised or found.high < promised
    verdict = ("kept" if kept else "NOT KEPT") + ("" if sure else ", but more rounds may say else")
    print(f"{what}: {found.median:.3f} [{found.low:.3f} {found.high:.3f}], {promised}: {verdict}")
    return kept


def machine() -> dict[str, Any]:
    """What a figure is worth nothing without."""
    names = ("torch", "transformers", "accelerate", "deepspeed")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "load_average": [round(x, 1) for x in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
        "commit": _commit(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def write_result(path: Path, result: Mapping[str, Any]) -> None:
    """One JSON file: the facts of the machine, every single time, every ratio."""
    path.write_text(json.dumps(result, indent=1, default=asdict) + "\n")


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """With a + behind it where files differ from it."""
    here = Path(__file__).resolve().parent
    command = ["git", "describe", "--always", "--exclude=*", "--dirty=+"]
    try:
        done = subprocess.run(command, cwd=here, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
