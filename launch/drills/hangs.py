"""Ranks that stand still or are slow: D13 a hung rank, D15 a straggler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, to_the_end
from launch.drills.oracle.ending import Ending
from launch.drills.reference import SAVE_EVERY
from launch.drills.runs import Site
from trainer.errors import Exit
from trainer.faultpoints import Fault
from trainer.records.json_file import read_lines

_HUNG = Ending(Exit.FAILED, "Hung|hung in")
_SLACK_S = 1.0  # beyond the limit
_LIMIT_S = 5
_SLOW_S = 0.5  # a micro-step; a healthy one takes a few hundredths
_SLOW_FROM = 6
_FLAGGED_WITHIN = 20


@dataclass(frozen=True)
class _Hang:
    point: str
    action: str
    rank: int
    phase: str


# Two between any two saves, not in an attempt's first step, which may take long.
_HANGS = (
    _Hang("step.forward", "stop", 1, "forward"),
    _Hang("step.update", "stop", 0, "update"),
    _Hang("data.read", "hang", 0, "data"),
    _Hang("step.backward", "spin", 1, "backward"),
    _Hang("step.agree", "hang", 1, "agree"),
    _Hang("step.forward", "spin", 0, "forward"),
    _Hang("step.backward", "stop", 0, "backward"),
    _Hang("data.read", "stop", 1, "data"),
    _Hang("step.update", "hang", 1, "update"),
    _Hang("step.agree", "stop", 0, "agree"),
)


def hung(bench: Bench) -> Result:
    """D13. Stopped, asleep or busy for ever: the first rank that stands still is named."""
    hangs = _HANGS[:2] if bench.short else _HANGS
    faults = [
        Fault(
            hang.point,
            hang.action,
            rank=hang.rank,
            step=number // 2 * SAVE_EVERY + 3 + number % 2,
            token=bench.site.token(f"d13-{number}"),
        )
        for number, hang in enumerate(hangs)
    ]
    name, site = "d13", bench.site
    before = site.look(name)
    last = to_the_end(bench, name, faults, f"watch.step_s={_LIMIT_S}", "watch.grace_s=1")
    endings = [*[_HUNG] * len(hangs), DONE]
    wrong = bench.judge(name, endings=endings, before=before, last=last)
    found = events(site, name, "hang")
    right, over = 0, list[float]()
    for hang, fault, event in zip(hangs, faults, found, strict=False):
        fired = site.fired(fault.token)
        if not fired:
            wrong.append(f"{hang} did not happen")
            continue
        right += (event["rank"], event["phase"]) == (hang.rank, hang.phase)
        if (event["rank"], event["phase"]) != (hang.rank, hang.phase):
            wrong.append(f"{hang}: rank {event['rank']} in {event['phase']} was named")
        over.append(event["time"] - fired[0]["time"] - event["limit_s"])
    late = [f"found {x:.1f} s after its limit" for x in over if x > _SLACK_S]
    latest = max(over, default=float("nan"))
    said = f"culprit and phase right in {right} of {len(hangs)}, {latest:.1f} s after the limit"
    figures = {"hangs": len(hangs), "hangs_right": right, "hang_over_s": latest}
    return Result(len(hangs), said, tuple(wrong), figures, tuple(late[:1]))


def straggler(bench: Bench) -> Result:
    """D15. One rank is slow in every forward; nothing is restarted for it."""
    name, site = "d15", bench.site
    before = site.look(name)
    slow = Fault("step.forward", "sleep", rank=1, step=_SLOW_FROM, times=0, value=_SLOW_S / 3)
    last = site.train(name, faults=[slow])
    wrong = bench.judge(name, endings=[DONE], before=before, last=last)
    flagged = events(site, name, "straggler")
    if not flagged:
        wrong.append("the slow rank was not reported")
    elif flagged[0]["rank"] != 1 or flagged[0]["step"] > _SLOW_FROM + _FLAGGED_WITHIN:
        wrong.append(f"rank {flagged[0]['rank']} was reported, at step {flagged[0]['step']}")
    healthy = [one.name for one in bench.known.values()]
    steps = sum(len(site.steps(one)) for one in healthy)
    false = [e for one in healthy for e in events(site, one, "straggler")]
    # On a machine with other things to do a healthy rank may really be slow.
    late = [f"rank {e['rank']} of a healthy run was reported" for e in false]
    at = flagged[0]["step"] if flagged else 0
    said = f"reported at step {at}, slow from {_SLOW_FROM} on; {len(false)} false in {steps} steps"
    return Result(1, said, tuple(wrong), late=tuple(late[:1]))


def events(site: Site, name: str, kind: str) -> list[dict[str, Any]]:
    """Lines of the run's ledgers of this kind, oldest first."""
    folder = site.run(name).root / "ledger"
    lines = [line for path in folder.glob("node-*.jsonl") for line in read_lines(path)]
    found = [line for line in lines if line.get("event") == kind]
    return sorted(found, key=lambda line: float(line["time"]))
