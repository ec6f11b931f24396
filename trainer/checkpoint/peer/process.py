"""The process beside a rank that keeps its states in memory, here and at the neighbour. No torch.

One order after the other over a socket, each answered; meanwhile a thread takes what a neighbour
sends and answers who reads. It ends with its rank: the kernel kills it, or the closed socket ends
it. Stop signals are not for it.

    in    {"open": {...}} once, then
          {"do": "hold"}                            keep what is here; answer who reads
          {"do": "make", "generations", "keep"}     room, once what is old has gone
          {"do": "seal", "generation", "step", ...} checksums, header, part, neighbour
          with "layout": what the rank's file holds from here on
    out   {"value": {...}} or {"error", "kind"}
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import mmap
import os
import shutil
import signal
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.checksum import DEFAULT
from trainer.checkpoint.format import Identity, data_bytes_of, digest_of, encode_header
from trainer.checkpoint.orders import decode_table
from trainer.checkpoint.peer.part import Part, encode, part_name
from trainer.checkpoint.peer.wire import Door, Sender, connect, put, write_part
from trainer.checkpoint.wire import receive, said_of, send
from trainer.checkpoint.writer import ChunkChecksums
from trainer.checkpoint.writer_process import BLOCK_BYTES, SIGNALS
from trainer.errors import CheckpointError
from trainer.faultpoints import arm_from, at_step, faultpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import rank_file_name
from trainer.records.memory_files import MemoryFiles, abandoned, attempt_of, hold
from trainer.records.sizes import size_text
from trainer.storage.local import Bytes

_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--listener", type=int, default=-1)
    given = parser.parse_args(argv)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != given.parent:  # it ended before the line above
        return
    for number in SIGNALS:  # blocked by the rank until here
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with socket.socket(fileno=given.socket) as link, contextlib.suppress(ConnectionError):
        serve(link, given.listener)


def serve(link: socket.socket, listener: int) -> None:
    """Until the other side closes."""
    opening = (receive(link) or {}).get("open")
    if opening is None:
        return
    arm_from(
        os.environ if opening["drills"] else {}, enabled=opening["drills"], rank=opening["rank"]
    )
    keeper = Keeper(opening)
    if listener >= 0:
        door = Door(keeper.files, keeper.node, opening["token"])
        threading.Thread(
            target=door.serve, args=(socket.socket(fileno=listener),), daemon=True
        ).start()
    while (order := receive(link)) is not None:
        send(link, said_of(lambda order=order: keeper.do(order)))  # type: ignore[misc]


class Keeper:
    """Does orders for one rank. Raises (from `do`): OSError, CheckpointError."""

    def __init__(self, opening: dict[str, Any]) -> None:
        self.files = MemoryFiles(Path(opening["folder"]), opening["run_id"])
        self.node = int(opening["node"])
        self._rank = int(opening["rank"])
        self._world_size = int(opening["world_size"])
        self._attempt = int(opening["attempt"])
        self._run_hash = str(opening["run_hash"])
        self._chunk_bytes = int(opening["chunk_bytes"])
        self._is_leader = bool(opening["is_leader"])
        self._copies = int(opening["copies"])  # of a state on this node: its own, a neighbour's
        neighbour = opening["neighbour"]
        self._neighbour = (str(neighbour[0]), int(neighbour[1])) if neighbour else None
        self._token = str(opening["token"])
        self._link: socket.socket | None = None
        self._lock = -1
        self._table: tuple[Fragment, ...] = ()
        self._common: dict[str, Any] = {}
        self._spans: tuple[tuple[int, int], ...] = ()
        self._start = 0

    def do(self, order: dict[str, Any]) -> dict[str, Any]:
        if self._lock < 0:
            self._lock = self._held()
        if "layout" in order:
            layout = order["layout"]
            self._table = decode_table(layout["table"])
            self._common, self._start = layout["common"], int(layout["start"])
            self._spans = tuple((a, b) for a, b in layout["spans"])
        act = {"hold": lambda _: {}, "make": self._make, "seal": self._seal}[order["do"]]
        return act(order)

    def _held(self) -> int:
        try:
            return hold(self.files, self.node)
        except OSError as e:
            why = f"{e.strerror}: {e.filename}" if e.strerror else f"{e}"
            raise CheckpointError(
                f"{self.files.folder} cannot be used for states ({why}); another "
                "checkpoint.peer.folder, or checkpoint.peer.every=0"
            ) from e

    def _make(self, order: dict[str, Any]) -> dict[str, Any]:
        """Room for generations; what is in none of `keep` goes first, on the node's first rank."""
        kept = {*order["keep"], *order["generations"]}
        if self._is_leader:
            for root in abandoned(self.files):
                shutil.rmtree(root, ignore_errors=True)
            for folder in self.files.generations():
                # Of a later attempt: this one has slept through its replacement.
                if folder.name not in kept and attempt_of(folder.name) <= self._attempt:
                    shutil.rmtree(folder, ignore_errors=True)
        size = self._start + data_bytes_of(self._table)
        self._refuse_if_full(size * len(order["generations"]) * self._copies)
        for generation in order["generations"]:
            folder = self.files.own(self.node, generation)
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (folder / part_name(self._rank)).unlink(missing_ok=True)
            path = folder / rank_file_name(self._rank)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(path, flags, 0o600)
            try:
                os.posix_fallocate(
                    descriptor, 0, size
                )  # a full memory is known here, not by SIGBUS
            except OSError:
                os.ftruncate(descriptor, 0)
                raise
            finally:
                os.close(descriptor)
        return {}

    def _refuse_if_full(self, needed: int) -> None:
        found = os.statvfs(self.files.node(self.node))
        free = found.f_bavail * found.f_frsize
        if needed > free:
            raise CheckpointError(
                f"{self.files.folder} has {size_text(free)} free, rank {self._rank} needs "
                f"{size_text(needed)} there for its states; a larger one, another "
                "checkpoint.peer.folder, or checkpoint.peer.every=0"
            )

    def _seal(self, order: dict[str, Any]) -> dict[str, Any]:
        """Checksums and header of what the rank has copied; then its part makes it count."""
        at_step(int(order["step"]))
        folder = self.files.own(self.node, order["generation"])
        path = folder / rank_file_name(self._rank)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if not self._start:
                raise CheckpointError("the process that keeps states was started anew")
            header = self._header(descriptor, int(order["step"]))
            faultpoint("memory.summed")
            os.pwrite(descriptor, header, 0)
        finally:
            os.close(descriptor)
        part = Part(
            run_hash=self._run_hash,
            step=int(order["step"]),
            attempt=self._attempt,
            world_size=self._world_size,
            rank=self._rank,
            size=self._start + data_bytes_of(self._table),
            digest=digest_of(header),
            spans=self._spans,
            created=float(order["created"]),
            parent_step=order["parent"],
            training=order["training"],
            common=self._common,
        )
        content = encode(part)
        faultpoint("memory.before_part")
        write_part(folder, part, content)
        faultpoint("memory.kept")
        if self._neighbour is not None:
            self._send(path, content, order["generation"])
            faultpoint("memory.sent")
        return {}

    def _header(self, descriptor: int, step: int) -> bytes:
        sums = ChunkChecksums(self._chunk_bytes)
        total = data_bytes_of(self._table)
        for block in _blocks(descriptor, self._start, total):
            sums.add(block)
        return encode_header(
            Identity(step, self._rank, self._world_size),
            self._table,
            algorithm=DEFAULT,
            chunk_bytes=self._chunk_bytes,
            checksums=sums.all(),
            at_least=self._start,
        )

    def _send(self, path: Path, content: bytes, generation: str) -> None:
        """On one connection for as long as it lasts. Raises: CheckpointError."""
        assert self._neighbour is not None
        told = Sender(self.node, self._rank)
        try:
            if self._link is not None:
                try:
                    put(self._link, path, content, generation, sender=told)
                    return
                except ConnectionError:  # the neighbour's process was started anew
                    self._link.close()
            self._link = connect(self._neighbour, self._token)
            put(self._link, path, content, generation, sender=told)
        except (OSError, CheckpointError) as e:
            if self._link is not None:
                self._link.close()
                self._link = None
            why = f"{e.strerror or e}" if isinstance(e, OSError) else f"{e}"
            if isinstance(e, OSError) and e.errno == errno.ENOSPC:
                why = f"no room at the neighbour ({why})"
            raise CheckpointError(
                f"the neighbour at {self._neighbour[0]}:{self._neighbour[1]} did not take rank "
                f"{self._rank}'s state: {why}"
            ) from e


def _blocks(descriptor: int, start: int, total: int) -> Sequence[Bytes]:
    if not total:
        return []
    whole = mmap.mmap(descriptor, start + total, prot=mmap.PROT_READ)
    data = np.frombuffer(whole, np.uint8)[start:]
    return [data[at : at + BLOCK_BYTES] for at in range(0, total, BLOCK_BYTES)]


if __name__ == "__main__":
    main()
