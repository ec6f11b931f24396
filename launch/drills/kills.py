"""Ranks and launchers that are killed: D12, D19."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence

from launch.drills.bench import Bench, Result
from launch.drills.oracle.ending import Ending
from launch.drills.oracle.leftovers import processes_of
from launch.drills.oracle.recovery import (
    recoveries,
    slow_recoveries,
    steps_redone,
)
from launch.drills.reference import SAVE_EVERY, STEPS
from launch.drills.runs import DrillFailed, Said
from trainer.errors import Exit
from trainer.faultpoints import Fault

RECOVER_S = 15.0
_GONE_S = 5.0
_MAX_STARTS = 20
_PER_WINDOW = 3  # deaths between two saves
# Passed by the writers beside the ranks; they die in D39.
_OF_WRITERS = ("save.file_written", "save.file_durable", "save.before_")
KILLED = Ending(Exit.FAILED, r"rank \d failed: .*killed by signal 9|SIGKILL")
DONE = Ending(Exit.DONE, "finished at step")


def kill_any_rank_at_any_step(bench: Bench) -> Result:
    """D12. One run that is killed again and again, at every point that the code has."""
    kills = _kills(bench)
    name, site = "d12", bench.site
    before = site.look(name)
    last = to_the_end(bench, name, kills, "restart.max_idle=10")
    # A rank that dies when all is done may find the run finished: then nothing has to go on.
    deaths = [KILLED for kill in kills if not kill.point.startswith("end.")]
    if len(site.attempts(name)) > len(deaths) + 1:
        deaths.append(KILLED)
    wrong = bench.judge(name, endings=[*deaths, DONE], before=before, last=last)
    steps = site.steps(name)
    fired = [site.fired(k.token) for k in kills]
    never = [kill for kill, said in zip(kills, fired, strict=True) if not said]
    wrong += [f"the kill at {kill.point} did not happen" for kill in never]
    seconds = recoveries([f[0]["time"] for f in fired if f], steps)
    if None in seconds[:-1]:  # the last one may strike when all steps are done
        wrong.append("a kill was not recovered from")
    redone = steps_redone(steps)
    if redone > len(kills) * SAVE_EVERY:
        wrong.append(f"{redone} steps were made again after {len(kills)} kills")
    slowest = max((s for s in seconds if s is not None), default=float("nan"))
    said = (
        f"{len(kills)} kills of both ranks, one at each point they pass: losses, weights, moments "
        f"bit-equal; {redone} steps redone; first step after {slowest:.1f} s"
    )
    late = slow_recoveries([s for s in seconds if s is not None], bound_s=RECOVER_S)
    figures = {"kills": float(len(kills)), "kill_recover_s": slowest}
    return Result(len(kills), said, tuple(wrong), figures, tuple(late[:1]))


def to_the_end(bench: Bench, name: str, faults: Sequence[Fault], *overrides: str) -> Said:
    """Train, and resume after every failure, as a person would; what the last command said."""
    said = bench.site.train(name, *overrides, faults=faults)
    for _ in range(_MAX_STARTS):
        if said.code not in (Exit.FAILED, Exit.SAVED):
            return said
        said = bench.site.resume(name, faults=faults)
    raise DrillFailed(f"{name} did not end after {_MAX_STARTS} starts:\n{said.err[-2000:]}")


def _kills(bench: Bench) -> list[Fault]:
    """One at every point that a rank passes, of both ranks in turn; several between two saves."""
    passed = [(p, ranks) for p, ranks in bench.passed if not p.startswith(_OF_WRITERS)]
    if bench.short:
        passed = [one for one in passed if one[0] in ("step.backward", "step.update")]
    found = []
    in_steps = _PER_WINDOW if bench.short else 0  # there must be something to come back to
    for number, (point, ranks) in enumerate(passed):
        step = 0 if point.startswith("start.") else STEPS
        if point.startswith(("step.", "data.", "save.", "eval.")):
            window, offset = divmod(in_steps, _PER_WINDOW)
            step = window * SAVE_EVERY + 1 + offset + window % 2
            in_steps += 1
        token = bench.site.token(f"d12-{number}")
        found.append(Fault(point, "kill", rank=ranks[number % len(ranks)], step=step, token=token))
    return found


def nothing_outlives_its_launcher(bench: Bench) -> Result:
    """D19. The launcher is killed, then its terminal goes away."""
    site, wrong, late, slowest = bench.site, list[str](), list[str](), 0.0
    for number, how in enumerate((signal.SIGKILL, signal.SIGHUP)):
        name = f"d19-{how.name.lower()}"
        before = site.look(name)
        running = site.begin("train", name, start_new_session=True)
        site.until(name, running, step=2 + number)
        pids = [pid for pid, _ in processes_of(site.run(name).root)]
        began = time.monotonic()
        os.kill(running.process.pid, how)
        code = running.wait().code
        wrong += [f"{name}: {text}" for text in site.left_over(name, before)]
        seconds = time.monotonic() - began
        if how == signal.SIGHUP and code != Exit.SAVED:
            wrong.append(f"{name}: returned {code}, not {Exit.SAVED}")
        if how == signal.SIGKILL:
            slowest = seconds
            if seconds > _GONE_S:
                late.append(f"{len(pids)} processes took {seconds:.1f} s to end")
        last = site.resume(name)
        if last.code != Exit.DONE:
            wrong.append(f"{name}: the next attempt returned {last.code}: {last.err[-300:]}")
    said = f"launcher killed, terminal gone: 0 processes, ports, locks left after {slowest:.1f} s"
    return Result(2, said, tuple(wrong), {"orphans_gone_s": slowest}, tuple(late))
