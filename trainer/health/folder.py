"""The folder that holds run folders: room, speed, and whether it can do what runs rest on.

A run rests on rename being atomic, on link (the first error wins), on flock (one writer, one rank
0) and on modes. Lustre without -o flock and some FUSE mounts lack one of them.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.health.finding import Facts, Finding, Needs
from trainer.records.sizes import size_text

_BLOCK = 1 << 20
_SLOW, _FAIR = 20e6, 100e6  # bytes a second of one writer; the watch allows for the first
_FEW_FILES = 20  # made and removed in a second
_LEAST_FREE = 1 << 30
_KEPT = 2  # checkpoints there must be room for: the last one and the next


def gather_folder(place: Path, *, megabytes: int = 32, files: int = 50) -> dict[str, Any]:
    """Measured in a folder of its own below `place`, which goes again."""
    facts: dict[str, Any] = {"path": str(place), "file_system": file_system_of(place)}
    try:
        disk = shutil.disk_usage(place)
        facts |= {"free_bytes": disk.free, "total_bytes": disk.total}
        with tempfile.TemporaryDirectory(prefix=".longhaul-", dir=place) as folder:
            facts["write_bytes_per_s"] = _write_speed(Path(folder), megabytes)
            facts["files_per_s"] = _file_rate(Path(folder), files)
            facts["lacks"] = list(_lacks(Path(folder)))
    except OSError as e:
        facts["error"] = e.strerror
    return facts


def judge_folder(facts: Facts, needs: Needs) -> Iterator[Finding]:
    path, kind = facts["path"], facts["file_system"]
    if "error" in facts:
        fix = "another run.root, or make it writable"
        yield Finding("run root", f"{path} ({kind}): {facts['error']}", "problem", fix)
        return
    if facts["lacks"]:
        what = f"{path} ({kind}) cannot do: {', '.join(facts['lacks'])}"
        fix = "another run.root; Lustre: mount it with -o flock"
        yield Finding("run root", what, "problem", fix)
    elif kind in ("tmpfs", "ramfs"):
        fix = "a disk: what lies here is lost with the machine"
        yield Finding("run root", f"{path} ({kind}): memory", "warn", fix)
    else:
        yield Finding("run root", f"{path} ({kind}): rename, link, flock and modes work")
    yield _room(facts, needs)
    yield _speed(facts)


def file_system_of(place: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """nfs4, lustre, ext4 ...: the mount that holds `place`."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
        wanted = str(place.resolve())
    except OSError:
        return "unknown"
    best, kind = "", "unknown"
    for line in lines:
        head, _, tail = line.partition(" - ")
        point = head.split()[4].encode().decode("unicode_escape")
        inside = wanted == point or wanted.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best) and tail:
            best, kind = point, tail.split()[0]
    return kind


def _room(facts: Facts, needs: Needs) -> Finding:
    free = facts["free_bytes"]
    text = f"{size_text(free)} of {size_text(facts['total_bytes'])}"
    wanted = max(_LEAST_FREE, _KEPT * needs.checkpoint_bytes)
    if free < wanted:
        fix = f"{size_text(wanted)} for {_KEPT} checkpoints; longhaul runs gc, or another run.root"
        return Finding("room", text, "problem", fix)
    return Finding("room", text)


def _speed(facts: Facts) -> Finding:
    speed, files = facts["write_bytes_per_s"], facts["files_per_s"]
    text = f"{size_text(speed)}/s written and synced, {files:,.0f} files/s"
    if speed < _SLOW:
        fix = "another run.root: saves and loads would take minutes for every GiB"
        return Finding("disk speed", text, "problem", fix)
    if speed < _FAIR or files < _FEW_FILES:
        return Finding("disk speed", text, "warn", "saves will be slow: steps.save_every=auto")
    return Finding("disk speed", text)


def _write_speed(folder: Path, megabytes: int) -> float:
    """Bytes a second of one file, synced."""
    block, path = os.urandom(_BLOCK), folder / "speed"
    started = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        for _ in range(megabytes):
            file.write(block)
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return megabytes * _BLOCK / seconds


def _file_rate(folder: Path, count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        path = folder / f"file-{number}"
        path.touch()
        path.unlink()
    return count / (time.perf_counter() - started)


def _lacks(folder: Path) -> Iterator[str]:
    """Names of what does not work here."""
    first, second = folder / "first", folder / "second"
    checks: dict[str, Callable[[], bool]] = {
        "rename over a file": lambda: _renames(first, second),
        "hard links": lambda: _links(first, second),
        "flock": lambda: _locks(first),
        "modes": lambda: _keeps_mode(first),
    }
    for name, works in checks.items():
        first.write_text("first", encoding="utf-8")
        second.unlink(missing_ok=True)
        try:
            fine = works()
        except OSError:
            fine = False
        if not fine:
            yield name


def _renames(first: Path, second: Path) -> bool:
    second.write_text("second", encoding="utf-8")
    first.replace(second)
    return second.read_text(encoding="utf-8") == "first"


def _links(first: Path, second: Path) -> bool:
    os.link(first, second)
    try:
        os.link(first, second)  # a place that is taken must be refused
    except FileExistsError:
        return True
    return False


def _locks(first: Path) -> bool:
    """Whether a lock that is held is seen by another descriptor."""
    with first.open() as one, first.open() as other:
        fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _keeps_mode(first: Path) -> bool:
    first.chmod(0o600)
    return stat.S_IMODE(first.stat().st_mode) == 0o600
