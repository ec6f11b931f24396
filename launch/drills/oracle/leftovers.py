"""Check 5: nothing outlives a run: no process, port, lock, temporary folder, shared memory.

`look` sees what is there (a run is known by its folder: named, or holding an open file of it);
`left_over` compares two looks.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"  # /proc/net/tcp


@dataclass(frozen=True)
class Seen:
    """What a run has on this machine at one moment, and what could be anybody's."""

    processes: frozenset[str] = frozenset()  # "PID command"
    ports: frozenset[int] = frozenset()  # TCP, listening, held by these processes
    locks: frozenset[str] = frozenset()  # held on files below the run folder
    temporary: frozenset[str] = frozenset()  # names in the folders for temporary files
    shared: frozenset[str] = frozenset()  # names in /dev/shm that no live process has open


def left_over(before: Seen, after: Seen) -> list[str]:
    """What is there after and was not before."""
    found = [f"process {text} still runs" for text in sorted(after.processes - before.processes)]
    found += [f"port {port} is still listened on" for port in sorted(after.ports - before.ports)]
    found += [f"a lock is still held on {name}" for name in sorted(after.locks - before.locks)]
    found += [f"{name} was left behind" for name in sorted(after.temporary - before.temporary)]
    return found + [
        f"shared memory {name} was not given back" for name in sorted(after.shared - before.shared)
    ]


def look(run: Path, *, temporary: Iterable[Path]) -> Seen:
    """`run`: its folder. `temporary`: folders in which nothing may stay."""
    pids = dict(processes_of(run))
    return Seen(
        processes=frozenset(f"{pid} {command}" for pid, command in pids.items()),
        ports=frozenset(_ports(pids)),
        locks=frozenset(_locks(run)),
        temporary=frozenset(
            str(path) for folder in temporary if folder.is_dir() for path in folder.iterdir()
        ),
        shared=frozenset(_forgotten()),
    )


def processes_of(run: Path) -> Iterator[tuple[int, str]]:
    """(pid, command line) of every process with the folder in its command, environment or hands."""
    needle = str(run).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
            mine = needle in command or needle in (entry / "environ").read_bytes()
            # What is forked from a process that waits has that one's command and environment.
            mine = mine or any(str(run) in path for path in _held_by(entry))
        except OSError:  # gone since it was listed, or another user's
            continue
        if command.endswith(f"--pid\0{os.getpid()}\0".encode()):
            continue  # a W&B service says whose it is: this process's own is not the run's
        if mine and state not in "ZX":
            yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace").strip()


def _forgotten() -> Iterator[str]:
    """Blocks of shared memory that outlived whoever made them."""
    blocks = {str(path) for path in Path("/dev/shm").iterdir()}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and blocks:
            blocks -= set(_held_by(entry))
    yield from blocks


def _held_by(process: Path) -> Iterator[str]:
    """Paths that a process has mapped or open."""
    with contextlib.suppress(OSError):
        for line in (process / "maps").read_text(errors="replace").splitlines():
            yield line[line.find("/") :]
    with contextlib.suppress(OSError):
        for link in (process / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                yield str(link.readlink())


def _ports(pids: Iterable[int]) -> Iterator[int]:
    sockets = {link for pid in pids for link in _sockets(pid)}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in sockets:
                yield int(fields[1].rpartition(":")[2], 16)


def _sockets(pid: int) -> Iterator[str]:
    for target in _held_by(Path(f"/proc/{pid}")):
        if target.startswith("socket:["):
            yield target[8:-1]


def _locks(run: Path) -> Iterator[str]:
    inodes = {}
    for path in run.rglob("*") if run.is_dir() else ():
        try:
            inodes[path.lstat().st_ino] = str(path)
        except OSError:
            continue
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.replace("->", "").split()
        inode = int(fields[5].rpartition(":")[2])
        if inode in inodes:
            yield inodes[inode]
