"""One rank and the page on which it says where it is. Standard library only."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from launch.watch.stacks import Page
from trainer.records.pulse import PAGE_BYTES, Beat, read_beat, read_worked


@dataclass
class Watched:
    """One rank and its page."""

    rank: int
    descriptor: int
    memory: mmap.mmap
    pid: int = 0
    runs: bool = True
    beat: Beat = field(default_factory=Beat)
    furthest: int = 0  # the last step that was done, whatever it went back to since
    _longest: dict[str, float] = field(default_factory=dict)

    @classmethod
    def make(cls, rank: int) -> Watched:
        descriptor = os.memfd_create(f"longhaul-pulse-{rank}", os.MFD_CLOEXEC)
        os.ftruncate(descriptor, PAGE_BYTES)
        return cls(rank, descriptor, mmap.mmap(descriptor, PAGE_BYTES))

    @property
    def page(self) -> Page:
        return Page(self.descriptor, self.beat.pid or self.pid, self.beat.signal)

    def read(self) -> None:
        found = read_beat(self.memory, self.beat)
        if found.pid:
            self.beat = found
            self.furthest = max(self.furthest, found.done)

    def news(self) -> Iterator[tuple[str, float]]:
        """Rows whose longest grew since this was asked last, and to how many seconds."""
        for name, spent in self.beat.spent.items():
            if spent.longest_s > self._longest.get(name, 0.0):
                self._longest[name] = spent.longest_s
                yield name, spent.longest_s

    def worked(self) -> dict[int, float]:
        """Seconds of work before the first collective, by step."""
        return read_worked(self.memory)

    def close(self) -> None:
        self.memory.close()
        os.close(self.descriptor)
