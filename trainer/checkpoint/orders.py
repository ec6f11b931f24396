"""What is done on the disk for a save, and by whom it is asked: one rank's file, publication.

    WriteFile  every rank: enter the incoming folder, write my file, fsync
    Publish    rank 0, once all files are durable: manifest, rename, pointer, retention
    Discard    rank 0, when a save failed: give back its room

The same code runs in the rank (a save that training waits for) and in its writer process, to which
orders travel as JSON. Torch-free.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checkpoint.fence import Fence
from trainer.checkpoint.folder import StepFolders, doomed
from trainer.checkpoint.format import Identity, data_bytes_of
from trainer.checkpoint.room import full_disk_named
from trainer.checkpoint.writer import write_rank_file
from trainer.faultpoints import faultpoint
from trainer.records.fragment import Fragment
from trainer.records.manifest import MANIFEST_NAME, digest_of, rank_file_name
from trainer.records.owner import Owner
from trainer.storage.local import Bytes


@dataclass(frozen=True, kw_only=True)
class WriteFile:
    """`buffer`: which staging buffer holds the bytes. `checksums`: of its chunks, if taken."""

    step: int
    attempt: int
    rank: int
    world_size: int
    chunk_bytes: int
    buffer: int = -1
    checksums: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Publish:
    """`manifest`: the whole text. `owner`: of the run, when the rank started; see fence.py.

    `needed_before`: the run may go back to the newest step older than this one. `best_step`: kept.
    """

    step: int
    attempt: int
    world_size: int
    manifest: str
    keep_last: int
    keep_every: int
    needed_before: int | None
    owner: Mapping[str, Any] | None
    best_step: int | None = None


@dataclass(frozen=True, kw_only=True)
class Discard:
    step: int
    attempt: int


Order = WriteFile | Publish | Discard
_ORDERS: dict[str, type[Order]] = {"write": WriteFile, "publish": Publish, "discard": Discard}


def write_file(
    folders: StepFolders,
    order: WriteFile,
    fragments: Sequence[Fragment],
    blocks: Iterator[Bytes],
    *,
    threads: int = 0,
) -> dict[str, Any]:
    """What the manifest will say of the file: {"size", "digest"}. Raises: OSError, CheckpointError.

    `threads`: see write_rank_file.

    The incoming folder is this attempt's, so a file of that name is a leftover of a save of the
    same step that failed. Rank 0 removes what other saves left; every rank its own file.
    """
    file = folders.incoming(order.step, order.attempt) / rank_file_name(order.rank)
    with full_disk_named(file, needed=data_bytes_of(fragments)):
        incoming = folders.enter(order.step, order.attempt)
        if order.rank == 0:
            folders.reap(order.attempt, but=incoming.name)
        if folders.storage.exists(file):
            folders.storage.remove_file(file)
        written = write_rank_file(
            folders.storage,
            incoming,
            Identity(order.step, order.rank, order.world_size),
            fragments,
            blocks,
            chunk_bytes=order.chunk_bytes,
            expected=order.checksums,
            threads=threads,
        )
    return {"size": written.size, "digest": written.digest}


def publish(folders: StepFolders, order: Publish) -> dict[str, Any]:
    """{"problem"}: what went wrong after the step was safe. After the rename nothing undoes it.

    {"durable"}: when it was, by time.monotonic, which is one clock for a machine's processes.
    Raises: OSError, CheckpointError, Superseded.
    """
    content = order.manifest.encode()
    owner = Owner(**order.owner) if order.owner else None
    fence = Fence(folders.root, order.attempt, known=owner)
    faultpoint("save.before_manifest")
    incoming = folders.incoming(order.step, order.attempt)
    files = map(rank_file_name, range(order.world_size))
    with full_disk_named(incoming / MANIFEST_NAME, needed=len(content)):
        folders.publish(incoming, order.step, content, files=files, may=fence.check)
    durable, problem = time.monotonic(), ""
    faultpoint("save.before_pointer")
    try:
        folders.point(order.step, digest_of(content))
        for old in doomed(
            folders.steps(),
            keep_last=order.keep_last,
            keep_every=order.keep_every,
            needed_before=order.needed_before,
            best=order.best_step,
        ):
            folders.remove(old)
    except OSError as e:
        problem = f"step {order.step} is saved, but tidying up after it failed: {e}"
    return {"durable": durable, "problem": problem}


def discard(folders: StepFolders, order: Discard) -> None:
    """What cannot be removed now is reaped by a later save."""
    with contextlib.suppress(OSError):
        folders.reap(order.attempt)


def encode_order(order: Order) -> dict[str, Any]:
    name = next(name for name, kind in _ORDERS.items() if isinstance(order, kind))
    return {"do": name, **asdict(order)}


def decode_order(fields: Mapping[str, Any]) -> Order:
    values = {key: value for key, value in fields.items() if key != "do"}
    return _ORDERS[fields["do"]](**values)


def encode_table(fragments: Sequence[Fragment]) -> list[Any]:
    return [[f.name, f.kind, f.shape, f.start, f.stop] for f in fragments]


def decode_table(rows: Sequence[Any]) -> tuple[Fragment, ...]:
    return tuple(Fragment(n, kind, tuple(shape), a, b) for n, kind, shape, a, b in rows)
