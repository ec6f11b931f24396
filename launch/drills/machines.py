"""Drills on several machines, made of namespaces: D11, D29 and D30. They need the repository."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from launch.drills.bench import Bench, NotHere, Result
from launch.drills.runs import DrillFailed

_REPOSITORY = Path(__file__).resolve().parents[2]
_LIMIT_S = 900.0
_CANNOT = 3  # the program's word that this machine cannot play several
_TIMES = ("found_s", "recovered_s")
_FOUND_S, _RECOVERED_S, _FENCED_S = 5.0, 20.0, 5.0


def lost(bench: Bench) -> Result:
    """D11. One of two machines loses its power; another is cut off and lives on."""
    said = _said(bench, "tests.helpers.lost_nodes")
    wrong = [f"{how}: {text}" for how, one in said.items() for text in one["wrong"]]
    found, recovered = (max(one[what] for one in said.values()) for what in _TIMES)
    fenced = said["cut"]["fenced_s"]
    bounds = {
        "found": (found, _FOUND_S),
        "going on": (recovered, _RECOVERED_S),
        "fenced": (fenced, _FENCED_S),
    }
    late = [f"{what} after {s:.1f} s" for what, (s, most) in bounds.items() if s > most]
    text = (
        f"one of two machines switched off, one cut off: found after {found:.1f} s at most, first "
        f"step after {recovered:.1f} s; 2 to 1 ranks, canonical: masters and moments bit-equal; "
        f"the one that lived on had ended its ranks {fenced:.1f} s later"
    )
    figures = {"node_found_s": found, "node_recover_s": recovered}
    return Result(len(said), text, tuple(wrong), figures, tuple(late))


def time_limit(bench: Bench) -> Result:
    """D29. Two of a chain's three jobs come to their time limit; the third gets to the end."""
    said = _said(bench, "tests.helpers.slurm_limits")
    waited = ", ".join(f"{seconds:.0f} s" for seconds in said["waited_s"])
    text = (
        f"a chain of {said['jobs']} jobs, two ended by Slurm's own signal before their limit "
        f"({waited} after it was set): all ranks saved, {said['steps']} steps, none twice; losses, "
        "masters and moments equal those of one run; no job was killed"
    )
    return Result(said["jobs"], text, tuple(said["wrong"]))


def double_requeue(bench: Bench) -> Result:
    """D30. Preempted, requeued by hand, started again and submitted twice, around one moment."""
    said = _said(bench, "tests.helpers.slurm_drills")
    text = (
        f"{said['seeds']} of {said['seeds']} seeds: {said['attempts']} attempts, one at a time, "
        "each carried by the run's own job; the job submitted twice left (ranks do not compute)"
    )
    return Result(said["seeds"], text, tuple(said["wrong"]))


def _said(bench: Bench, *words: str) -> dict[str, Any]:
    """The JSON that `python -m WORDS` ends with. Raises: NotHere, DrillFailed."""
    if not (_REPOSITORY / words[0].replace(".", "/")).with_suffix(".py").exists():
        raise DrillFailed(f"{words[0]} is not here: it needs the repository")
    said = bench.site.command([sys.executable, "-m", *words], cwd=_REPOSITORY).wait(_LIMIT_S)
    if said.code == _CANNOT:
        raise NotHere(said.err.strip())
    try:
        found: dict[str, Any] = json.loads(said.out.splitlines()[-1])
    except (IndexError, ValueError):
        raise DrillFailed(f"{' '.join(words)}: {said.err[-2000:]}") from None
    return found
