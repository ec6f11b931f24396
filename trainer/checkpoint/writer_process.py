"""The process beside a rank that writes its checkpoints. Started by link.py.

Imports no torch: it is there in a tenth of a second and costs 30 MB. It maps the rank's staging
buffers, does one order after the other, and answers each over a socket. It never outlives its rank:
the kernel kills it with the rank, and a closed socket ends it. Stop signals are not for it.

    in    {"table": [...], "do": "write" ...}     answer  {"value": ...} or {"error", "kind"}
The shared counter rises with every operation on the disk, so that the rank sees a stuck disk.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import mmap
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.format import data_bytes_of
from trainer.checkpoint.orders import (
    Discard,
    Publish,
    WriteFile,
    decode_order,
    decode_table,
    discard,
    publish,
    write_file,
)
from trainer.checkpoint.wire import receive, said_of, send
from trainer.faultpoints import arm_from, at_step
from trainer.records.fragment import Fragment
from trainer.storage.local import Bytes, LocalStorage, NewFile, StoredFile

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
BLOCK_BYTES = 4 << 20  # read for the checksum, then written while it is in the cache
_THREADS = 4  # that wait for the disk; with one, 0.6 to 0.7 of its rate was reached
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the checkpoints folder")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--counter", type=int, required=True)
    parser.add_argument("--buffers", type=int, nargs="*", default=[])
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--drills", action="store_true")
    given = parser.parse_args(argv)
    _die_with(given.parent)
    for number in SIGNALS:  # blocked by the rank until here
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    arm_from(os.environ if given.drills else {}, enabled=given.drills, rank=given.rank)
    counter = np.frombuffer(mmap.mmap(given.counter, mmap.PAGESIZE), np.uint64)
    folders = StepFolders(CountingStorage(counter), given.root)
    writer = Writer(folders, [_mapped(fd) for fd in given.buffers], threads=_THREADS)
    counter[0] += np.uint64(1)  # from here on a counter that stands still means something
    with socket.socket(fileno=given.socket) as link, contextlib.suppress(ConnectionError):
        while (order := receive(link)) is not None:
            answer = said_of(lambda order=order: writer.do(order))  # type: ignore[misc]
            counter[0] += np.uint64(1)
            send(link, answer)


class Writer:
    """Does orders on buffers. Raises: OSError, CheckpointError."""

    def __init__(self, folders: StepFolders, buffers: Sequence[Bytes], *, threads: int = 0) -> None:
        self._folders = folders
        self._buffers = buffers
        self._threads = threads
        self._table: tuple[Fragment, ...] = ()

    def do(self, message: dict[str, Any]) -> dict[str, Any]:
        """`table`: the fragments from now on, if they are others than before."""
        if "table" in message:
            self._table = decode_table(message.pop("table"))
        order = decode_order(message)
        at_step(order.step)
        match order:
            case WriteFile():
                data = self._buffers[order.buffer][: data_bytes_of(self._table)]
                blocks = _blocks(data)
                return write_file(self._folders, order, self._table, blocks, threads=self._threads)
            case Publish():
                return publish(self._folders, order)
            case Discard():
                discard(self._folders, order)
                return {}


class CountingStorage(LocalStorage):
    """The disk, counting what was done: a counter that stands still is a disk that does."""

    def __init__(self, counter: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        self._counter = counter

    def tick(self) -> None:
        self._counter[0] += np.uint64(1)

    def create(self, path: Path, *, size: int) -> NewFile:
        file = super().create(path, size=size)
        self.tick()
        return _CountingFile(file, self.tick)

    def open(self, path: Path) -> StoredFile:
        self.tick()
        return super().open(path)

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        self.tick()

    def fsync_folder(self, path: Path) -> None:
        super().fsync_folder(path)
        self.tick()

    def remove_file(self, path: Path) -> None:
        super().remove_file(path)
        self.tick()

    def remove_tree(self, path: Path) -> None:
        super().remove_tree(path)
        self.tick()


class _CountingFile:
    def __init__(self, file: NewFile, tick: Callable[[], None]) -> None:
        self._file = file
        self._tick = tick

    def write(self, offset: int, data: Bytes | bytes) -> None:
        self._file.write(offset, data)
        self._tick()

    def fsync(self) -> None:
        self._file.fsync()
        self._tick()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> _CountingFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _blocks(data: Bytes) -> Iterator[Bytes]:
    for start in range(0, len(data), BLOCK_BYTES):
        yield data[start : start + BLOCK_BYTES]


def _mapped(descriptor: int) -> Bytes:
    """Read-only, its pages mapped now and not one by one while writing."""
    size = os.fstat(descriptor).st_size
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    return np.frombuffer(mmap.mmap(descriptor, size, flags=flags, prot=mmap.PROT_READ), np.uint8)


def _die_with(parent: int) -> None:
    """Be killed when the rank ends, however it ends."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        raise SystemExit(0)


if __name__ == "__main__":
    main()
