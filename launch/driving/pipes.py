"""A handle on an agent whose stdin and stdout are pipes of this process."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass


@dataclass
class PipeHandle:
    """`losing`: exit codes of the process that mean that the agent's own is not known."""

    process: subprocess.Popen[bytes]
    losing: Collection[int] = ()

    def __post_init__(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    @property
    def lost(self) -> bool:
        return self.process.poll() in self.losing

    def poll(self) -> int | None:
        return self.process.poll()

    def tell(self, data: bytes) -> None:
        """What a pipe that nobody reads does not take is left out: nobody would read it later."""
        assert self.process.stdin is not None
        with suppress(OSError, ValueError):
            os.write(self.process.stdin.fileno(), data)

    def heard(self) -> bytes:
        assert self.process.stdout is not None
        parts = []
        with suppress(BlockingIOError, ValueError):
            while data := os.read(self.process.stdout.fileno(), 1 << 16):
                parts.append(data)
        return b"".join(parts)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()
