"""Runs that keep states in memory, and save to the disk at their end alone: D12b."""

from __future__ import annotations

from pathlib import Path

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, KILLED, RECOVER_S, to_the_end
from launch.drills.oracle.recovery import recoveries, slow_recoveries, steps_redone
from launch.drills.reference import STEPS
from launch.run.run_folder import read_record
from trainer.faultpoints import Fault
from trainer.records.lineage import read_lineage
from trainer.records.memory_files import MemoryFiles

_FOLDER = "/dev/shm"
_EVERY = 1
_POINTS = ("step.backward", "step.update", "memory.copied", "data.read")


def kills_with_states_in_memory(bench: Bench) -> Result:
    """D12b. Ranks and processes beside them are killed; there is no checkpoint to go back to."""
    name, site = "d12b", bench.site
    before = site.look(name)
    kills, others = _kills(bench)
    last = to_the_end(
        bench,
        name,
        [*kills, *others],
        "steps.save_every=0",
        f"checkpoint.peer.every={_EVERY}",
        f"checkpoint.peer.folder={_FOLDER}",
        "restart.max_idle=10",
    )
    wrong = bench.judge(name, endings=[*[KILLED] * len(kills), DONE], before=before, last=last)
    steps = site.steps(name)
    fired = [site.fired(kill.token) for kill in kills]
    wrong += [
        f"the kill at {k.point} did not happen" for k, f in zip(kills, fired, strict=True) if not f
    ]
    wrong += [f"the kill at {o.point} did not happen" for o in others if not site.fired(o.token)]
    redone = steps_redone(steps)
    if redone > _EVERY * len(kills):
        wrong.append(f"{redone} steps were made again after {len(kills)} kills")
    run = site.run(name)
    places = [one.place for one in read_lineage(run.lineage)][1:]
    wrong += [
        f"attempt {n} went on from {p or 'the disk'}" for n, p in enumerate(places, 2) if not p
    ]
    left = MemoryFiles(Path(_FOLDER), read_record(run).run_id).root
    wrong += [f"{left} was not given back"] if left.exists() else []
    seconds = [s for s in recoveries([f[0]["time"] for f in fired if f], steps) if s is not None]
    slowest = max(seconds, default=float("nan"))
    said = (
        f"{len(kills)} kills of both ranks and {len(others)} of the processes beside them, no "
        f"checkpoint: losses, weights, moments bit-equal; {redone} steps redone; first step after "
        f"{slowest:.1f} s"
    )
    late = slow_recoveries(seconds, bound_s=RECOVER_S)
    return Result(len(kills), said, tuple(wrong), {"memory_redone": redone}, tuple(late))


def _kills(bench: Bench) -> tuple[list[Fault], list[Fault]]:
    """Of ranks, one after another some steps apart; of processes in between."""
    points = _POINTS[:2] if bench.short else _POINTS
    apart = (STEPS - 6) // len(points)
    ranks, beside = [], []
    for number, point in enumerate(points):
        token, step = bench.site.token(f"d12b-{number}"), 5 + apart * number
        ranks.append(Fault(point, "kill", rank=number % 2, step=step, token=token))
    for number, point in enumerate(("memory.before_part", "memory.kept")):
        token = bench.site.token(f"d12b-beside-{number}")
        beside.append(Fault(point, "kill", rank=number, step=8 + number, token=token))
    return ranks, beside
