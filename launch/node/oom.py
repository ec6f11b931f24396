"""Did the kernel end a process because memory ran out? Its own counters say; a signal 9 does not.

Counters are read every second or so and compared over the last `LOOKS`: a kill is counted when it
is decided, and a process of many GiB takes seconds to be gone. The cgroup's counter where the
process has one of its own limit, else the machine's, where another job may have been the victim.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

LOOKS = 20


@dataclass
class OomCounters:
    """`proc` and `cgroups`: where the kernel shows them."""

    proc: Path = Path("/proc")
    cgroups: Path = Path("/sys/fs/cgroup")
    _of: dict[int, Path] = field(default_factory=dict)  # pid -> file that counts for it
    _before: dict[Path, deque[int]] = field(default_factory=dict)

    def look(self, pids: Iterable[int]) -> None:
        """Remember the counters; call it often."""
        for pid in pids:
            found = self._counter_of(pid)
            # A process that is dying has left its cgroup for the root's.
            if found is not None and not (pid in self._of and self._is_roots(found)):
                self._of[pid] = found
        for path in {self._machine, *self._of.values()}:
            count = _count(path)
            if count is not None:
                self._before.setdefault(path, deque(maxlen=LOOKS)).append(count)

    def has_killed(self, pid: int) -> bool | None:
        """Whether a kill was counted within the last looks; None where nothing is counted."""
        path = self._of.get(pid, self._machine)
        now = _count(path)
        if now is None or path not in self._before:
            return None
        return now > self._before[path][0]

    def _is_roots(self, path: Path) -> bool:
        return path.parent in (self.cgroups, self.cgroups / "memory")

    @property
    def _machine(self) -> Path:
        return self.proc / "vmstat"

    def _counter_of(self, pid: int) -> Path | None:
        try:
            lines = (self.proc / str(pid) / "cgroup").read_text().splitlines()
        except OSError:
            return None
        return next((p for line in lines for p in self._candidates(line) if _has_count(p)), None)

    def _candidates(self, line: str) -> Iterator[Path]:
        """Of one line `ID:CONTROLLERS:/PATH`; version 2 has no controllers there."""
        _, controllers, path = line.split(":", 2)
        inner = path.lstrip("/")
        if not controllers:
            yield self.cgroups / inner / "memory.events"
        elif "memory" in controllers.split(","):
            yield self.cgroups / "memory" / inner / "memory.oom_control"


def _has_count(path: Path) -> bool:
    return _count(path) is not None


def _count(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == "oom_kill":
                return int(value)
    except (OSError, ValueError):
        return None
    return None
