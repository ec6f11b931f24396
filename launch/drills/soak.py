"""D40: many faults at random in one run, and a run in which every start dies at the same step."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from launch.drills.bench import Bench, Reference, Result
from launch.drills.kills import RECOVER_S, to_the_end
from launch.drills.oracle.digest import wrong_tensors
from launch.drills.oracle.losses import wrong_losses
from launch.drills.oracle.recovery import recoveries, slow_recoveries
from launch.drills.oracle.samples import wrong_samples
from launch.drills.reference import BATCH, SAVE_EVERY
from trainer.capacity.goodput import Parts, simulate
from trainer.errors import Exit
from trainer.faultpoints import Fault

_FAULTS = 30
_MEAN_STEPS = 12.0  # between two faults
_POINTS_APART = 3.0
# What breaks, each as likely as the next: none of these may change a number.
_KINDS: tuple[tuple[str, str, float], ...] = (
    *[("step.forward", "kill", 0.0), ("step.update", "kill", 0.0), ("step.agree", "kill", 0.0)],
    *[("data.read", "kill", 0.0), ("step.backward", "raise", 0.0), ("step.begin", "raise", 0.0)],
    *[("save.file_written", "enospc", 0.0), ("save.file_durable", "eio", 0.0)],
    *[("save.file_written", "sleep", 1.0), ("step.forward", "sleep", 0.5)],
    *[("step.end", "kill", 0.0), ("save.begin", "kill", 0.0)],
    *[("step.begin", "signal", 15.0), ("data.read", "stop", 0.0)],  # told to stop; hung
)
_POISONED = 12  # beyond two checkpoints, so that there is one to go back to


@dataclass(frozen=True)
class _Life:
    """One attempt as it was. Units: seconds since the epoch."""

    first: float  # end of its first step
    last: float  # end of its last one
    steps: int


def soak(bench: Bench) -> Result:
    """D40a. Exponential in useful steps, seeded; the same bits, and the goodput foretold."""
    count = 5 if bench.short else _FAULTS
    faults = list(_drawn(bench, count))
    steps = -(-(faults[-1].step + 2 * SAVE_EVERY) // SAVE_EVERY) * SAVE_EVERY
    settings = ("restart.max_idle=8", "watch.step_s=5", "watch.grace_s=1")
    overrides = (f"steps.total={steps}", *settings)
    whole = bench.reference_of(*overrides, steps=steps)
    name, site = "d40", bench.site
    before = site.look(name)
    last = to_the_end(bench, name, faults, *overrides)
    wrong = [f"it returned {last.code}"] if last.code != Exit.DONE else []
    root, other = str(site.run(name).root), str(site.run(whole.name).root)
    diff = site.json_of("trainer.commands.checkpoint", "diff", root, other, "--json")
    verified = site.json_of("trainer.commands.checkpoint", "verify", root, "--json")
    wrong += wrong_losses(site.steps(name), whole.losses)
    wrong += wrong_tensors(diff, step=steps)
    wrong += wrong_samples(site.samples(name), batch=BATCH, steps=steps)
    wrong += bench.wrong_checkpoints(name, verified, newest=steps)
    wrong += site.left_over(name, before)
    happened = sum(bool(site.fired(fault.token)) for fault in faults)
    measured, foretold = goodputs(site.steps(name), whole, steps=steps)
    apart = 100 * abs(measured - foretold)
    if happened != count:
        wrong.append(f"{happened} of {count} faults happened")
    if apart > _POINTS_APART:
        wrong.append(f"goodput {measured:.1%}, foretold {foretold:.1%}: {apart:.1f} points apart")
    said = (
        f"{happened} faults in {steps} steps, {len(lives(site.steps(name)))} attempts: bits equal; "
        f"goodput {measured:.1%}, foretold {foretold:.1%}"
    )
    deaths = [site.fired(fault.token) for fault in faults if fault.action == "kill"]
    known = recoveries([f[0]["time"] for f in deaths if f], site.steps(name))
    seconds = [s for s in known if s is not None]  # None: it struck when all steps were done
    slowest = max(seconds, default=float("nan"))
    said += f"; first step after {slowest:.1f} s at most after a kill"
    late = slow_recoveries(seconds, bound_s=RECOVER_S)[:1]
    figures = {"soak_faults": happened, "soak_points": apart, "soak_goodput": 100 * measured}
    return Result(count, said, tuple(wrong), figures, tuple(late))


def _drawn(bench: Bench, count: int) -> Iterator[Fault]:
    draw = random.Random(bench.seed)
    at = 0.0
    for number in range(count):
        at += draw.expovariate(1 / _MEAN_STEPS)
        point, action, value = draw.choice(_KINDS)
        yield Fault(
            point,
            action,
            rank=draw.randrange(2),
            step=2 + int(at),
            value=value,
            token=bench.site.token(f"d40-{number}"),
        )


def lives(lines: Sequence[Mapping[str, Any]]) -> list[_Life]:
    """Of the step lines of a run: one a attempt that made a step, in order."""
    by_attempt: dict[int, list[float]] = {}
    for line in lines:
        by_attempt.setdefault(int(line["attempt"]), []).append(float(line["time"]))
    return [_Life(min(t), max(t), len(t)) for _, t in sorted(by_attempt.items())]


def goodputs(
    lines: Sequence[Mapping[str, Any]], whole: Reference, *, steps: int
) -> tuple[float, float]:
    """(measured, foretold): the share of wall time, first step to last, that was useful work.

    Useful is a step's mean own time, as the run says it, once a step. Foretold from when it broke
    (each attempt's length), the length of a step, the stall of a save, and the mean outage. The
    mean, not the median: on a busy machine some steps take several times as long.
    """
    seen = lives(lines)
    step_s = statistics.mean(float(x["step_s"]) for x in lines)
    wall = seen[-1].last - seen[0].first + step_s
    useful = steps * step_s
    outages = [b.first - a.last - step_s for a, b in pairwise(seen)]
    outage = statistics.mean(outages) if outages else 0.0
    parts = Parts(stall_s=whole.stall_s, detect_s=0.0, restart_s=outage)
    gaps = [life.last - life.first + 1.5 * step_s for life in seen[:-1]]
    ran = simulate(parts, gaps, interval_s=SAVE_EVERY * step_s, work_s=useful)
    return useful / wall, ran.goodput


def crash_loop(bench: Bench) -> Result:
    """D40b. Every start dies at the same step: one checkpoint back, then no more."""
    name, site = "d40-loop", bench.site
    before = site.look(name)
    fault = Fault("step.update", "raise", rank=1, step=_POISONED, times=0)
    last = site.train(name, faults=[fault])
    attempts = site.attempts(name)
    wrong = site.left_over(name, before)
    if last.code != Exit.NO_PROGRESS:
        wrong.append(f"it returned {last.code}, not {Exit.NO_PROGRESS}: {last.err[-500:]}")
    if len(attempts) > 6:
        wrong.append(f"it tried {len(attempts)} times, more than 6")
    back = [a for a in attempts if a.get("step_back")]
    if len(back) != 1:
        wrong.append(f"it went {len(back)} checkpoints back, not 1")
    said = f"{len(attempts)} attempts, {len(back)} step back, then exit {last.code}"
    return Result(1, said, tuple(wrong), {"loop_attempts": len(attempts)})
