"""Doors: D7 two starts of a run, D8 stale locks, D10 exports, D16 a duplicate rank, D17 a port."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

from launch.drills.bench import Bench, Result
from launch.drills.kills import DONE
from launch.drills.oracle.ending import Ending
from launch.drills.reference import STEPS
from trainer.errors import Exit
from trainer.faultpoints import Fault
from trainer.records.json_file import read_json
from trainer.records.run_files import RunFiles

_REFUSED_S = 2.0
_LONG_S = 30.0  # so that the first is still there when the second is judged
_REFUSALS = (Exit.REFUSED, Exit.STOP)


def two_starts(bench: Bench) -> Result:
    """D7. While A trains, B is refused by name of A and touches nothing of it."""
    site, name, wrong, slowest = bench.site, "d7", list[str](), 0.0
    before = site.look(name)
    slow = Fault("step.begin", "sleep", rank=0, value=_LONG_S / STEPS, times=0)
    first = site.begin("train", name, faults=[slow])
    site.until(name, first, step=2)
    seen = _files(site.run(name))
    mark = read_json(site.run(name).attempt(1).agent)
    for verb in ("train", "resume"):
        again = site.begin(verb, name)
        said = again.wait()
        slowest = max(slowest, said.seconds)
        if said.code not in _REFUSALS:
            wrong.append(f"a second {verb} returned {said.code}")
        if str(mark["pid"]) not in said.err or "attempt 1" not in said.err:
            wrong.append(
                f"a second {verb} does not name pid and attempt: {said.err.strip()[-300:]}"
            )
    changed = [path for path, state in seen.items() if _files(site.run(name)).get(path) != state]
    wrong += [f"{path} was changed by a refused start" for path in changed]
    last = first.wait()
    wrong += bench.judge(name, endings=[DONE], before=before, last=last)
    said_ = (
        f"2 of 2 second starts refused in {slowest:.1f} s at most, command included; A untouched"
    )
    late = [f"refused after {slowest:.1f} s"] if slowest > _REFUSED_S else []
    return Result(2, said_, tuple(wrong), {"refused_s": slowest}, tuple(late))


def _files(run: RunFiles) -> dict[str, tuple[int, int]]:
    """What a running attempt does not write itself: name -> (inode, size)."""
    living = (
        *("metrics.jsonl", "rank-", "torch_extensions", "beat", "watch.json", "ledger"),
        "checkpoints",
    )
    found = {}
    for path in run.root.rglob("*"):
        if path.is_file() and not any(word in str(path) for word in living):
            stat = path.stat()
            found[str(path)] = (stat.st_ino, stat.st_size)
    return found


def stale_locks(bench: Bench) -> Result:
    """D8. What a killed launcher leaves, and a pid that is another's by now, is in nobody's way."""
    site, name, wrong = bench.site, "d8", list[str]()
    before = site.look(name)
    first = site.begin("train", name)
    site.until(name, first, step=2)
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait()
    wrong += site.left_over(name, before)
    agent = site.run(name).attempt(1).agent
    mark = read_json(agent)
    recycled = mark | {"pid": os.getpid()}  # alive, but another process than the one that wrote it
    agent.write_text(json.dumps(recycled), encoding="utf-8")
    last = site.resume(name)
    ending = Ending(Exit.FAILED, "without a word|killed")
    wrong += bench.judge(name, endings=[ending, DONE], before=before, last=last)
    return Result(2, "killed launcher's lock, a pid that is somebody else's: started", tuple(wrong))


def taken_port(bench: Bench) -> Result:
    """D17. A fixed port that somebody has is refused by number; a free one is found otherwise."""
    site, wrong = bench.site, list[str]()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = site.train("d17", f"resources.rendezvous_port={port}")
    if said.code not in _REFUSALS or str(port) not in said.err:
        wrong.append(f"a taken port: returned {said.code}: {said.err[-300:]}")
    if site.run("d17").root.exists():
        wrong.append("a run folder was made")
    late = [f"refused after {said.seconds:.1f} s"] if said.seconds > 5 else []
    text = f"port {port} refused by number in {said.seconds:.1f} s"
    return Result(1, text, tuple(wrong), late=tuple(late))


def duplicate_rank(bench: Bench) -> Result:
    """D16. A second rank 1 with the same environment."""
    site, name, wrong = bench.site, "d16", list[str]()
    before = site.look(name)
    first = site.begin("train", name)
    site.until(name, first, step=6)
    pid = site.ranks(name)[1]
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    env = dict(w.decode().split("=", 1) for w in words if b"=" in w)
    env.pop("LONGHAUL_FAMILY", None)  # the agent would end it; nothing but the ranks may
    argv = [sys.executable, "-m", "trainer.worker", str(site.run(name).root), "--attempt", "1"]
    began = time.monotonic()
    twin = site.command(argv, env=env)
    last = first.wait()
    said = twin.wait(limit_s=90)
    seconds = time.monotonic() - began
    if said.code in (Exit.DONE, Exit.SAVED):
        wrong.append(f"a duplicate of rank 1 returned {said.code}")
    wrong += bench.judge(name, endings=[DONE], before=before, last=last)
    return Result(
        1, f"a duplicate of rank 1 changed nothing; it ended after {seconds:.1f} s", tuple(wrong)
    )


def interrupted_export(bench: Bench) -> Result:
    """D10. Killed at moments spread over its length: what is at the target is whole, or nothing."""
    site, wrong = bench.site, list[str]()
    run = str(site.run(bench.reference.name).root)
    whole = site.folder / "export-whole"
    argv = [sys.executable, "-m", "launch", "export", run, "--to"]
    said = site.command([*argv, str(whole)]).wait()
    if said.code != Exit.DONE:
        return Result(0, "the export failed", (f"it returned {said.code}: {said.err[-500:]}",))
    expected = _contents(whole)
    kills = 1 if bench.short else 3
    for number in range(kills):
        target = site.folder / f"export-{number}"
        running = site.command([*argv, str(target)], start_new_session=True)
        # The later half of its time: before that it imports.
        time.sleep(said.seconds * (0.5 + 0.5 * number / kills))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.process.pid, signal.SIGKILL)
        running.wait()
        if target.exists() and _contents(target) != expected:
            wrong.append(f"killed at {number}: {target.name} is there and not whole")
        again = site.command([*argv, str(target)]).wait()
        done = again.code == Exit.DONE or _contents(target) == expected
        if not done or _contents(target) != expected:
            wrong.append(f"killed at {number}: done again it is not equal: {again.err[-300:]}")
    return Result(kills, f"{kills} kills: whole or nothing, equal when done again", tuple(wrong))


def _contents(folder: Path) -> dict[str, str]:
    """Names and digests of its weights and settings."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("*"))
        if path.suffix in (".safetensors", ".json")
    }
