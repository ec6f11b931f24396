"""Saves that go wrong: D2 a rank dies in one, D4 a full disk, D5 a read-only one, D6 a slow one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, KILLED, RECOVER_S, to_the_end
from launch.drills.oracle.ending import Ending
from launch.drills.oracle.recovery import recoveries, slow_recoveries, steps_redone
from launch.drills.reference import SAVE_EVERY, STEPS
from launch.drills.runs import DrillFailed, Running, Site, wait_for
from trainer.errors import Exit
from trainer.faultpoints import Fault

_BY_ALL = ("save.begin", "save.file_written", "save.file_durable")
_BY_RANK_0 = ("save.before_manifest", "save.before_rename", "save.before_pointer")
_BESIDE = ("save.begin", "save.staged", "step.forward", "step.agree")
_AFTER = {"step.forward": 1, "step.agree": 2}  # steps after the one that is saved
_WORLD = 3
_SYNCHRONOUS = "checkpoint.asynchronous=false"
_SMALL_MIB = 12
_STUCK_S = 60.0  # two starts, a writer given up after 5 s


def a_rank_dies_in_a_save(bench: Bench) -> Result:
    """D2. Three ranks; each phase of a save kills each of them, another save each time.

    Saves are synchronous here, so that a rank itself is in every phase; writers die in D39.
    """
    places = [(point, rank) for point in _BY_ALL for rank in range(_WORLD)]
    places += [(point, 0) for point in _BY_RANK_0]
    if bench.short:
        places = [("save.file_written", 1), ("save.before_rename", 0)]
    return _dying_in_saves(bench, "d2", places, _SYNCHRONOUS)


def a_rank_dies_beside_a_save(bench: Bench) -> Result:
    """D2b. Asynchronous: each rank killed as a save begins, once it has copied its part, and in
    the two steps after that, while the writers write or rank 0's publishes.
    """
    places = [(point, rank) for point in _BESIDE for rank in range(_WORLD)]
    if bench.short:
        places = [("save.staged", 1), ("step.forward", 0)]
    return _dying_in_saves(bench, "d2b", places, "checkpoint.asynchronous=true")


def _dying_in_saves(bench: Bench, name: str, places: Sequence[tuple[str, int]], how: str) -> Result:
    """One run; each place has a save of its own, of three ranks."""
    steps = max(STEPS, SAVE_EVERY * (len(places) + 2))
    overrides = (f"resources.ranks_per_node={_WORLD}", f"steps.total={steps}", how)
    whole = bench.reference_of(*overrides, steps=steps)
    faults = [
        Fault(
            point,
            "kill",
            rank=rank,
            step=SAVE_EVERY * (1 + number) + _AFTER.get(point, 0),
            token=bench.site.token(f"{name}-{number}"),
        )
        for number, (point, rank) in enumerate(places)
    ]
    site = bench.site
    before = site.look(name)
    last = to_the_end(bench, name, faults, *overrides)
    happened = [f for f in (site.fired(fault.token) for fault in faults) if f]
    endings = [*[KILLED] * len(happened), DONE]
    wrong = bench.judge(name, endings=endings, before=before, last=last, reference=whole)
    never = [fault for fault in faults if not site.fired(fault.token)]
    wrong += [f"{fault.point} of rank {fault.rank} was never passed" for fault in never]
    lines = site.steps(name)
    seconds = recoveries([f[0]["time"] for f in happened], lines)
    late = slow_recoveries(seconds, bound_s=RECOVER_S)[:1]
    redone = steps_redone(lines)
    if redone > len(places) * (SAVE_EVERY + 1):
        wrong.append(f"{redone} steps redone after {len(places)} deaths")
    slowest = max((s for s in seconds if s is not None), default=float("nan"))
    said = (
        f"{len(happened)} of {len(places)} phase x rank: bits equal, {redone} steps redone; first "
        f"step after {slowest:.1f} s at most"
    )
    return Result(len(places), said, tuple(wrong), late=tuple(late))


def disk_full(bench: Bench) -> Result:
    """D4. A real file system of a few MiB fills up under one save, and has room for the next."""
    site, name = bench.site, "d4"
    before = site.look(name)
    with _small_disk(site) as disk:
        running = _train_onto(site, name, disk)
        _until_saved(site, name, running, SAVE_EVERY)
        ballast = _fill(disk)
        failed = _until_failed(site, name, running)
        ballast.unlink()
        last = running.wait()
        wrong = bench.judge(name, endings=[DONE], before=before, last=last)
        saves = site.saves(name)
    if not any(s["succeeded"] and s["step"] > failed["step"] for s in saves):
        wrong.append("no save succeeded after there was room again")
    if "No space left" not in failed["problem"]:
        wrong.append(f"the failed save says {failed['problem']!r}")
    lied = [s["step"] for s in saves if s["succeeded"] and s["step"] == failed["step"]]
    wrong += [f"the save of step {step} is said to have succeeded" for step in lied]
    said = (
        f"the save of step {failed['step']} failed on all ranks, training went on bit-equal; "
        f"the next one with room succeeded; {len(lied)} false successes"
    )
    return Result(1, said, tuple(wrong), {"false_successes": len(lied)})


def read_only(bench: Bench) -> Result:
    """D5. A file system that turns read-only: as many failed saves as allowed, then one message."""
    site, name, wrong = bench.site, "d5", list[str]()
    before = site.look(name)
    with _small_disk(site) as disk:
        running = _train_onto(site, name, disk)
        _until_saved(site, name, running, SAVE_EVERY)
        _mount("remount,ro", disk)
        said = running.wait()
        if said.code != Exit.STOP:
            wrong.append(f"it returned {said.code}, not {Exit.STOP}")
        if "Traceback" in said.err:
            wrong.append("a traceback reached the user")
        if said.err.count("saves in a row failed") != 1:
            wrong.append(f"not one message about failed saves: {said.err[-500:]}")
        _mount("remount,rw", disk)
        last = site.resume(name)
        endings = [Ending(Exit.STOP, "saves in a row failed|Read-only"), DONE]
        wrong += bench.judge(name, endings=endings, before=before, last=last)
        again = site.folder / "locked"
        again.mkdir()
        try:
            subprocess.run(["mount", "--bind", str(again), str(again)], check=True)
            _mount("remount,bind,ro", again)
            refused = site.train("d5-start", f"run.root={again}")
        finally:
            subprocess.run(["umount", str(again)], check=False, capture_output=True)
    if refused.code not in (Exit.REFUSED, Exit.STOP) or "Traceback" in refused.err:
        wrong.append(f"a read-only start returned {refused.code}: {refused.err[-300:]}")
    text = "read-only in mid-run: exit 78 with one message, resumed; at start: refused"
    late = [f"refused after {refused.seconds:.1f} s"] if refused.seconds > 2 else []
    return Result(2, text, tuple(wrong), late=tuple(late))


def slow_disk(bench: Bench) -> Result:
    """D6. Each file of a save takes 2 s more; then one never becomes durable."""
    site, wrong = bench.site, list[str]()
    name = "d6-slow"
    before = site.look(name)
    slow = Fault("save.file_written", "sleep", value=2.0, times=0)
    last = site.train(name, faults=[slow])
    wrong += bench.judge(name, endings=[DONE], before=before, last=last)
    saves = [s for s in site.saves(name) if s["step"] < STEPS]  # the last one is waited for
    plain = [s["stall_s"] for s in site.saves(bench.reference.name) if s["step"] < STEPS]
    stall = max(s["stall_s"] for s in saves[:1])
    late = [f"it held training up for {stall:.3f} s"] if stall > max(plain) + 0.05 else []
    name = "d6-stuck"
    before = site.look(name)
    stuck = Fault("save.file_written", "hang", rank=1, step=SAVE_EVERY, token=site.token("d6"))
    running = site.begin("train", name, "checkpoint.writer_timeout_s=5", faults=[stuck])
    began = time.monotonic()
    said = running.wait()
    if said.code not in (Exit.DONE, Exit.FAILED, Exit.SAVED):
        wrong.append(f"a stuck disk: returned {said.code}: {said.err[-500:]}")
    if said.code != Exit.DONE:
        last = site.resume(name)
        wrong += [] if last.code == Exit.DONE else [f"the resume returned {last.code}"]
    if not any("succeeded" in s and not s["succeeded"] for s in site.saves(name)):
        wrong.append("the stuck save was not reported as failed")
    wrong += [f"{name}: {text}" for text in site.left_over(name, before)]
    seconds = time.monotonic() - began
    late += [f"over after {seconds:.0f} s"] if seconds > _STUCK_S else []
    text = f"2 s slower: stall {stall * 1000:.0f} ms; stuck: given up, over after {seconds:.0f} s"
    return Result(2, text, tuple(wrong), late=tuple(late))


# --- a small disk ----------------------------------------------------------------------------


@contextlib.contextmanager
def _small_disk(site: Site) -> Iterator[Path]:
    """Raises: DrillFailed where this user may not mount."""
    disk = site.folder / "disk"
    disk.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={_SMALL_MIB}m,mode=700", "tmpfs", str(disk)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise DrillFailed(f"no small disk here: {mounted.stderr.strip()}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False, capture_output=True)


def _mount(options: str, disk: Path) -> None:
    subprocess.run(["mount", "-o", options, str(disk)], check=True, capture_output=True)


def _train_onto(site: Site, name: str, disk: Path) -> Running:
    """A run whose checkpoints lie on that disk."""
    running = site.begin("train", name)
    folder = site.run(name).checkpoints
    wait_for(site.run(name).attempts.is_dir, while_running=running, what="the run folder")
    folder.symlink_to(disk)
    return running


def _until_saved(site: Site, name: str, running: Running, step: int) -> None:
    def saved() -> bool:
        return any(s["succeeded"] and s["step"] >= step for s in site.saves(name))

    wait_for(saved, while_running=running, what=f"a save of step {step}")


def _until_failed(site: Site, name: str, running: Running) -> dict[str, Any]:
    def failures() -> list[dict[str, Any]]:
        return [s for s in site.saves(name) if not s["succeeded"]]

    wait_for(lambda: bool(failures()), while_running=running, what="a failed save")
    return failures()[0]


def _fill(disk: Path) -> Path:
    """A file that leaves no room for a save."""
    ballast = disk / "ballast"
    free = shutil.disk_usage(disk).free
    ballast.write_bytes(bytes(max(0, free - 64 * 1024)))
    return ballast
