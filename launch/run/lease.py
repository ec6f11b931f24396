"""The heartbeat of whoever carries an attempt, and what its silence means.

Another host cannot ask whether a process lives. It watches a counter instead, and judges by its
own clock alone: who does not move the counter for `lease_s` seconds is taken for dead. Only the
attempt's own agent writes its counter, so an old one can never overwrite a newer one's claim.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

from trainer.errors import RunFolderError
from trainer.records.run_files import AttemptFiles

BEAT_FILE = "beat"  # under the attempt's folder
BEAT_S = 1.0
_DIGITS = 12


@dataclass
class Lease:
    """This process's hold on an attempt."""

    files: AttemptFiles
    name: str = BEAT_FILE
    count: int = 0
    due: float = 0.0

    @classmethod
    def take(cls, files: AttemptFiles, *, node: int | None = None) -> Lease:
        """`node`: of several under one driver, which holds the attempt itself.

        Raises: RunFolderError if the attempt was taken before: each is one try.
        """
        name = BEAT_FILE if node is None else beat_of(node)
        try:
            descriptor = os.open(files.root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise RunFolderError(
                f"attempt {files.number} of {files.root.parent.parent} has been started before; "
                "longhaul resume makes the next one"
            ) from None
        os.close(descriptor)
        lease = cls(files, name)
        lease.beat()
        return lease

    def beat(self) -> None:
        """In place, for a network file system shows a renamed file late. Survives a full disk."""
        self.count += 1
        self.due = time.monotonic() + BEAT_S
        try:
            descriptor = os.open(self.files.root / self.name, os.O_WRONLY)
            try:
                os.pwrite(descriptor, f"{self.count:0{_DIGITS}d}\n".encode(), 0)
            finally:
                os.close(descriptor)
        except OSError:  # silent for too long, we may be replaced; the owner file will tell us
            return


def beat_of(node: int) -> str:
    """The name of the file in which the agent of one node of several beats."""
    return f"{BEAT_FILE}-{node}"


def read_beat(files: AttemptFiles, name: str = BEAT_FILE) -> bytes | None:
    try:
        return (files.root / name).read_bytes()
    except OSError:
        return None


def is_silent(files: AttemptFiles, seconds: float) -> bool:
    """Watch the attempt's counter for `seconds`; False as soon as it moves.

    False too if nobody has carried it yet: it may be waiting in a queue.
    """
    first = read_beat(files)
    if first is None:
        return False
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(min(0.1, seconds))
        if read_beat(files) != first:
            return False
    return True
