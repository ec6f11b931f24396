"""What is around a run: D20 no memory, D31 wrong clocks, D32 damaged data, D34 a failing reader."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE, RECOVER_S, to_the_end
from launch.drills.oracle.ending import Ending
from launch.drills.oracle.recovery import recoveries, slow_recoveries
from launch.drills.reference import BATCH
from launch.drills.runs import DrillFailed
from trainer.errors import Exit
from trainer.faultpoints import Fault

_GROUPS = Path("/sys/fs/cgroup/memory")
_LIMIT_BYTES = 5 << 30  # two ranks, one standing by, the launcher: about 2 GiB
_EATS_AT = 3 * BATCH  # a sample of step 4
_CLOCKS = """\
import os, time
_real = time.time
_apart = {"0": -600.0, "1": 3600.0}


def _wrong() -> float:
    return _real() + _apart.get(os.environ.get("RANK", ""), 0.0)


time.time = _wrong
"""


def out_of_memory(bench: Bench) -> Result:
    """D20. A rank takes memory until the kernel ends it: the cause is known, it does not loop."""
    site, name = bench.site, "d20"
    before = site.look(name)
    with _memory_group(f"longhaul-drill-{os.getpid()}") as join:
        said = site.begin(
            *("train", name),
            f"+task.settings.spoil={{sample:{_EATS_AT},how:eat}}",
            preexec_fn=join,
        ).wait(300)
    attempts = site.attempts(name)
    wrong = site.left_over(name, before)
    causes = [attempt.get("cause") for attempt in attempts]
    if set(causes) != {"oom"}:
        wrong.append(f"the causes are {causes}, not oom")
    if len(attempts) > 2:
        wrong.append(f"it tried {len(attempts)} times, more than 2")
    if said.code not in (Exit.FAILED, Exit.STOP, Exit.NO_PROGRESS):
        wrong.append(f"it returned {said.code}")
    text = f"cause oom in {causes.count('oom')} of {len(attempts)} attempts, then exit {said.code}"
    return Result(len(attempts), text, tuple(wrong))


@contextlib.contextmanager
def _memory_group(name: str) -> Iterator[Callable[[], None]]:
    """A memory-limited group that a child joins. Raises: DrillFailed where none can be made."""
    group = _GROUPS / name
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(_LIMIT_BYTES))
    except OSError as e:
        raise DrillFailed(f"no memory group here: {e}") from None

    def join() -> None:
        (group / "cgroup.procs").write_text(str(os.getpid()))

    try:
        yield join
    finally:
        for _ in range(50):
            with contextlib.suppress(OSError):
                group.rmdir()
                break
            time.sleep(0.1)


def wrong_clocks(bench: Bench) -> Result:
    """D31. One rank's clock is an hour ahead, the other's ten minutes back, over a kill."""
    site, name = bench.site, "d31"
    shim = site.folder / "clocks"
    shim.mkdir(exist_ok=True)
    (shim / "sitecustomize.py").write_text(_CLOCKS, encoding="utf-8")
    repository = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join([str(shim), repository])
    before = site.look(name)
    last = site.begin("train", name, env={"PYTHONPATH": path}).wait()
    wrong = bench.judge(name, endings=[DONE], before=before, last=last)
    apart = [x["time"] for x in site.steps(name)]
    if abs(apart[-1] - time.time() + 600) > 300:
        wrong.append("the clock of rank 0 was not wrong: the drill did not happen")
    return Result(1, "clocks 70 minutes apart: bits, order and names equal", tuple(wrong))


def damaged_data(bench: Bench) -> Result:
    """D32. A flipped bit, a cut, a missing file of the token store: stopped before it is used."""
    site, wrong = bench.site, list[str]()
    stores = sorted((site.folder / "stores").glob("*/"))
    shard = max(
        (p for store in stores for p in store.rglob("train-*.tokens")),
        key=lambda p: p.stat().st_size,
    )
    content = shard.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    damages: dict[str, bytes | None] = {"flipped": bytes(flipped), "cut": content[:-7]}
    damages["missing"] = None
    caught = 0
    for what, now in damages.items():
        name = f"d32-{what}"
        before = site.look(name)
        shard.unlink()
        if now is not None:
            shard.write_bytes(now)
        try:
            said = site.train(name)
        finally:
            shard.unlink(missing_ok=True)
            shard.write_bytes(content)
        named = shard.name in said.err or shard.parent.name in said.err
        healed = said.code == Exit.DONE and not _differs(bench, name)
        caught += healed or (said.code in (Exit.STOP, Exit.REFUSED) and named)
        if not healed and not (said.code in (Exit.STOP, Exit.REFUSED) and named):
            wrong.append(f"{name}: returned {said.code}: {said.err[-400:]}")
        wrong += [f"{name}: {text}" for text in site.left_over(name, before)]
    again = to_the_end(bench, "d32-whole", ())
    wrong += [] if again.code == Exit.DONE else ["the whole store is refused too"]
    text = f"{caught} of {len(damages)} damages of a token store stopped by name, or made anew"
    return Result(len(damages), text, tuple(wrong))


def reader_fails(bench: Bench) -> Result:
    """D34. The reading of rows raises, meets a bad disk, is slow, on one rank: the same samples."""
    site, name = bench.site, "d34"
    plan = (("raise", 1, 4, 0.0), ("eio", 0, 8, 0.0), ("sleep", 1, 12, 2.0))
    faults = [
        Fault("data.read", how, rank=rank, step=step, value=s, token=site.token(f"d34-{how}"))
        for how, rank, step, s in plan
    ]
    before = site.look(name)
    last = to_the_end(bench, name, faults)
    failed = Ending(Exit.FAILED, r"rank \d failed: (Drilled|OSError)")
    wrong = bench.judge(name, endings=[failed, failed, DONE], before=before, last=last)
    seconds = recoveries(
        [site.fired(f.token)[0]["time"] for f in faults[:2] if site.fired(f.token)],
        site.steps(name),
    )
    late = slow_recoveries(seconds, bound_s=RECOVER_S)[:1]
    text = f"{len(faults)} faults of one rank's reader: samples once, bits equal"
    return Result(len(faults), text, tuple(wrong), late=tuple(late))


def _differs(bench: Bench, name: str) -> bool:
    seen = {x["step"]: x["loss"] for x in bench.site.steps(name)}
    return seen != bench.reference.losses
