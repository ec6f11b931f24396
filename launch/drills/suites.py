"""Drills that are a room's own tests: carried out as they are, and counted. D1, D33."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.drills.bench import Bench, Result
from launch.drills.runs import DrillFailed

_REPOSITORY = Path(__file__).resolve().parents[2]
_COUNT = re.compile(r"(\d+) (passed|failed|error|skipped)")
_LIMIT_S = 600.0
_FEWEST_STATES = 5000


def every_place_of_a_save(bench: Bench) -> Result:
    """D1. The real writer over a disk in memory: every place to be killed, every power loss."""
    argv = [sys.executable, "-m", "tests.helpers.crash_model"]
    said = bench.site.command(argv, cwd=_REPOSITORY).wait(_LIMIT_S)
    if said.code:
        raise DrillFailed(f"no crash model here, it needs the repository: {said.err[-500:]}")
    total = json.loads(said.out.splitlines()[-1])
    cases = total["kills"] + total["power_losses"]
    ways = {"wrong", "nothing", "early", "stuck"}
    wrong = [f"{total[way]} states: {way}" for way in sorted(ways) if total[way]]
    wrong += ["nothing was enumerated"] if cases < _FEWEST_STATES else []
    text = (
        f"{total['kills']} kills and {total['power_losses']} power losses, of 1 and 4 ranks, "
        f"waiting and in the background: {total['bad']} lost or wrong"
    )
    return Result(cases, text, tuple(wrong), {"crash_cases": cases, "crash_bad": total["bad"]})


def suite(*paths: str, what: str, figure: str = "") -> Callable[[Bench], Result]:
    """A drill: every test of these files holds. `what`: what they are, after their number."""

    def run(bench: Bench) -> Result:
        return _hold(bench, paths, what=what, figure=figure)

    return run


def _hold(bench: Bench, paths: Sequence[str], *, what: str, figure: str) -> Result:
    """Raises: DrillFailed outside the repository."""
    there = [path for path in paths if (_REPOSITORY / path.partition("::")[0]).exists()]
    if len(there) != len(paths):
        raise DrillFailed(f"{set(paths) - set(there)} is not here: it needs the repository")
    argv = [sys.executable, "-m", "pytest", *paths, "-o", "addopts=", "-p", "no:cacheprovider"]
    argv += ["--rootdir", str(_REPOSITORY), "-c", str(_REPOSITORY / "pyproject.toml")]
    said = bench.site.command([*argv, "-q"], cwd=_REPOSITORY).wait(_LIMIT_S)
    counts = {word: int(number) for number, word in _COUNT.findall(said.out)}
    passed = counts.get("passed", 0)
    wrong = [line for line in said.out.splitlines() if line.startswith(("FAILED", "ERROR"))]
    if said.code or not passed:
        wrong = wrong or [f"pytest returned {said.code}: {said.out[-500:]}{said.err[-500:]}"]
    figures = {figure: float(passed)} if figure and not wrong else {}
    return Result(passed, f"{passed} {what}", tuple(wrong), figures)
