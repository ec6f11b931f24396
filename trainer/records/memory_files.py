"""Where a run's states lie in the memory of a machine, who holds them, and how they are given back.

<folder>/longhaul-<uid>/<run id>/node-0/
    lock                       held by the processes that keep states here, while they live
    own/0003.0/                one of two generations of attempt 3: what this node's ranks hold
        rank-00000.safetensors as in a checkpoint
        rank-00000.part        written last; makes that file count (trainer/checkpoint/peer/part.py)
    of-node-1/0003.0/          the same of the neighbour whose states are kept here

Plain files in shared memory: they outlive the ranks and their agent. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PART = ".part"
ABANDONED_S = 600.0  # a restart may want what nobody holds for a moment
GENERATIONS = 2
_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_LOCK = "lock"


@dataclass(frozen=True)
class MemoryFiles:
    """`folder`: the setting checkpoint.peer.folder. Paths only, but for the methods that say so."""

    folder: Path
    run_id: str

    def __post_init__(self) -> None:
        if not _SAFE.fullmatch(self.run_id):
            raise ValueError(f"{self.run_id!r} cannot be a run's id")

    @property
    def base(self) -> Path:
        return self.folder / f"longhaul-{os.getuid()}"

    @property
    def root(self) -> Path:
        return self.base / self.run_id

    def node(self, node: int) -> Path:
        return self.root / f"node-{node}"

    def own(self, node: int, generation: str) -> Path:
        return self.node(node) / "own" / generation

    def of(self, node: int, neighbour: int, generation: str) -> Path:
        return self.node(node) / f"of-node-{neighbour}" / generation

    def enter(self, node: int) -> None:
        """Make the node's folder. Raises: OSError, also where another user could read or plant."""
        for path in (self.base, self.root, self.node(node)):
            with suppress(FileExistsError):
                path.mkdir(mode=0o700)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
                raise PermissionError(f"{path} is not a folder of this user")
            if stat.S_IMODE(found.st_mode) & 0o077:
                raise PermissionError(f"{path} is open to other users")

    def generations(self) -> list[Path]:
        """Every generation of any attempt and node that lies on this machine."""
        return sorted(self.root.glob("node-*/own/*")) + sorted(self.root.glob("node-*/of-node-*/*"))

    def parts(self) -> list[Path]:
        return sorted(p for folder in self.generations() for p in folder.glob(f"rank-*{PART}"))


def attempt_of(generation: str) -> int:
    """Whose it is; 0 for what is no generation."""
    number = generation.partition(".")[0]
    return int(number) if number.isdigit() else 0


def memory_of(plan: Mapping[str, Any]) -> MemoryFiles | None:
    """Of an attempt, from its plan.json as it was read; None if it keeps nothing in memory."""
    try:
        section = plan["config"]["checkpoint"]["peer"]
        return MemoryFiles(Path(section["folder"]), plan["run_id"]) if section["every"] else None
    except (KeyError, TypeError, ValueError):
        return None


def hold(files: MemoryFiles, node: int) -> int:
    """A lock on the node's states for as long as this process lives; its descriptor.

    Raises: OSError.
    """
    while True:
        files.enter(node)
        path = files.node(node) / _LOCK
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if _is_at(descriptor, path):
                return descriptor
        os.close(descriptor)  # it was given back in between


def is_held(root: Path) -> bool:
    """Whether a process keeps states of that run (MemoryFiles.root) on this machine now."""
    return any(_is_locked(lock) for lock in root.glob(f"node-*/{_LOCK}"))


def give_back(files: MemoryFiles, node: int | None = None) -> None:
    """Free the memory of one node, or of all that lie on this machine. Never raises."""
    shutil.rmtree(files.root if node is None else files.node(node), ignore_errors=True)
    with suppress(OSError):
        files.root.rmdir()
    with suppress(OSError):
        files.base.rmdir()


def abandoned(files: MemoryFiles, *, older_s: float = ABANDONED_S) -> Iterator[Path]:
    """Other runs of this user that nobody holds and nobody has touched for `older_s`."""
    if not files.base.is_dir():
        return
    for root in sorted(files.base.iterdir()):
        if root == files.root or not root.is_dir() or is_held(root):
            continue
        if time.time() - _touched(root) > older_s:
            yield root


def _touched(root: Path) -> float:
    """When a name in it last came or went."""
    times = [0.0]
    for folder, _, _ in os.walk(root):
        with suppress(OSError):
            times.append(Path(folder).stat().st_mtime)
    return max(times)


def _is_locked(lock: Path) -> bool:
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_at(descriptor: int, path: Path) -> bool:
    return os.path.samestat(os.fstat(descriptor), path.lstat())
