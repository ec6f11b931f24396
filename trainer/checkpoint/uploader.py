"""Copies committed steps into an object store, this rank's share of them. Runs beside training.

    rank 0       run.json, plan, withdrawals: what marks the place
    every rank   once it sees that mark: its files, from the disk, each chunk checked on the way
    rank 0       waits until the others' are there; the manifest, last; then retention: a manifest
                 first, then the files under it

Nothing is sent to a place that has lost the mark, or never shows it to this rank: another disk may
be meant than the one that is mounted here.

Rank 0 learns of the others' files by listing the step's folder (1,000 objects a request), in its
own process and at its own pace: no rank and no step of training waits for that. What a crash leaves
is a folder without a manifest, which nobody reads; the same step goes on from what is there.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.checkpoint.folder import StepFolders, read_failure
from trainer.checkpoint.rank_file import ChunkCache, OpenRankFile
from trainer.checkpoint.remote_steps import (
    ATTEMPTS,
    RUN_JSON,
    WITHDRAWN,
    StepObjects,
    all_folders,
    folder_of,
    is_committed,
    is_empty,
    is_withdrawn,
    read_object,
    stored_manifest,
    withdrawals,
)
from trainer.checkpoint.upload_failures import failure_of
from trainer.errors import CheckpointError, RunFolderError, SaveFailed
from trainer.records.copies import copied_to, emptied, note_copies
from trainer.records.manifest import LIMIT_BYTES, MANIFEST_NAME, Manifest
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import Withdrawal, encode, merged, read_withdrawals
from trainer.storage.local import Bytes, Storage, read_whole
from trainer.storage.remote import ObjectStore

_BLOCK_BYTES = 16 << 20
_LONGEST_POLL_S = 5.0
_MARK_S = 300.0  # for rank 0 to mark the place, as long as its tries take and more


@dataclass(frozen=True, kw_only=True)
class UploadSettings:
    """`url`: of the place, for people and records. `attempt`: of this rank.

    `timeout_s`: for one step, all of it.
    """

    url: str
    attempt: int
    rank: int
    world_size: int
    keep_last: int
    timeout_s: float


@dataclass(frozen=True)
class Uploaded:
    """What this rank sent of one step. Bytes: sent now; `total`: of the step."""

    step: int
    sent: int
    total: int
    problem: str = ""  # of tidying up, once the step was safe


class Uploader:
    """`disk` and `run`: where the steps are. `may`: raises if this attempt may no longer write.

    Raises (from its verbs): CheckpointError and its kinds, RunFolderError, OSError.
    """

    def __init__(
        self,
        store: ObjectStore,
        disk: Storage,
        run: RunFiles,
        settings: UploadSettings,
        *,
        may: Callable[[], None] = lambda: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._disk = disk
        self._run = run
        self._settings = settings
        self._may = may
        self._sleep = sleep
        self._introduced = False

    def upload(self, step: int) -> Uploaded:
        """Bring a published step to the store; on rank 0 it is committed when this returns."""
        deadline = time.monotonic() + self._settings.timeout_s
        folders = StepFolders(self._disk, self._run.checkpoints)
        if not self._disk.exists(folders.step(step)):
            raise SaveFailed("the disk has let go of it before (checkpoint.keep_last)")
        manifest, digest = folders.manifest(step)
        target = folder_of(step, digest)
        total = sum(file.size for file in manifest.files)
        lead = self._settings.rank == 0
        if lead:
            self.introduce()
        else:
            self._await_mark(step)
        text = self._text(folders.step(step) / MANIFEST_NAME)
        sent = self._send_mine(folders.step(step), manifest, target)
        problem = ""
        if lead:
            self._await_all(manifest, target, deadline)
            if not is_committed(self._store, target):
                self._commit(manifest, text, target)
            problem = "; ".join(filter(None, (self._noted(step), self._tidied(target))))
        return Uploaded(step, sent, total, problem)

    def introduce(self) -> None:
        """What a machine with nothing needs beside the checkpoints, once an attempt. Rank 0.

        Raises, and sends nothing: RunFolderError if the place has other copies than it had.
        """
        if self._store.size(RUN_JSON) is None:
            self._refuse_emptied()
            self._put(RUN_JSON, self._run.run_json.read_bytes())
        else:
            self._refuse_others()
        if self._introduced:
            return
        plan = self._run.attempt(self._settings.attempt).plan
        self._put(plan.relative_to(self._run.root), plan.read_bytes())
        self.tell_withdrawn()
        self._introduced = True

    def tell_withdrawn(self) -> None:
        """The list of steps that the run has turned its back on goes with the copies."""
        mine = read_withdrawals(self._run.withdrawn)
        if mine and self._store.size(RUN_JSON) is None:
            self._refuse_emptied()
        there = withdrawals(self._store)
        if (both := merged(mine, there)) != there:
            self._put(WITHDRAWN, encode(both))

    # --- whether this is the place -------------------------------------------------------------

    def _refuse_others(self) -> None:
        """Raises: RunFolderError if the copies here are another run's."""
        mine = json.loads(self._run.run_json.read_bytes()).get("run_id")
        if run_id_of(self._store) != mine:
            raise RunFolderError(
                "the copies at checkpoint.remote.url are of another run with this name; "
                "nothing was sent: use another run.name or another URL"
            )

    def _refuse_emptied(self) -> None:
        """Raises: RunFolderError if copies were put here, and nothing of them is to be seen."""
        record = self._run.copies
        known = copied_to(record, self._settings.url)
        if known is not None and is_empty(self._store):
            raise RunFolderError(f"nothing was sent: {emptied(record, self._settings.url, known)}")

    def _await_mark(self, step: int) -> None:
        """Raises: SaveFailed if this rank does not see the place that rank 0 sees."""
        until = time.monotonic() + (0.0 if self._introduced else _MARK_S)
        wait_s = 0.1
        while self._store.size(RUN_JSON) is None:
            if why := failure_of(self._run.attempt(self._settings.attempt), step):
                raise SaveFailed(why)
            if time.monotonic() > until:
                url, host = self._settings.url, socket.gethostname()
                raise SaveFailed(
                    f"{url}/{RUN_JSON}, which rank 0 put there, is not seen on {host}; nothing was "
                    "sent from here: is it mounted, and is it the same account?"
                )
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_POLL_S)
        if not self._introduced:
            self._refuse_others()
        self._introduced = True

    def _noted(self, step: int) -> str:
        try:
            note_copies(self._run.copies, self._settings.url, step)
        except (OSError, ValueError) as e:
            return f"step {step} is uploaded, but {self._run.copies} could not be written: {e}"
        return ""

    # --- the parts of an upload ----------------------------------------------------------------

    def _send_mine(self, folder: Path, manifest: Manifest, target: StepObjects) -> int:
        sent = 0
        mine = range(self._settings.rank, manifest.world_size, self._settings.world_size)
        for rank in mine:
            entry = manifest.files[rank]
            path = target.path / entry.name
            if self._store.size(path) == entry.size:
                continue
            source = _Source(self._disk, folder, manifest, rank)
            try:
                self._store.put(path, source.blocks, size=entry.size)
            finally:
                source.close()
            sent += entry.size
        return sent

    def _await_all(self, manifest: Manifest, target: StepObjects, deadline: float) -> None:
        wait_s = 0.1
        while True:
            there = self._store.sizes(target.path)
            missing = [f.name for f in manifest.files if there.get(f.name) != f.size]
            if not missing:
                return
            if why := failure_of(self._run.attempt(self._settings.attempt), manifest.step):
                raise SaveFailed(why)
            if time.monotonic() > deadline:
                raise SaveFailed(
                    f"{len(missing)} of {manifest.world_size} ranks' files did not come within "
                    f"{self._settings.timeout_s:.0f} s, {missing[0]} for one; that rank's log "
                    "says why"
                )
            self._sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_POLL_S)

    def _commit(self, manifest: Manifest, text: bytes, target: StepObjects) -> None:
        self._may()
        self._refuse_if_replaced()
        self.tell_withdrawn()
        if is_withdrawn(manifest, withdrawals(self._store)):
            raise SaveFailed(f"the run went back to before step {manifest.step} meanwhile")
        self._put(target.manifest, text)

    def _refuse_if_replaced(self) -> None:
        """On another machine the owner file of this one says nothing. Raises: SaveFailed."""
        names = self._store.names(ATTEMPTS)
        newest = max((int(name) for name in names if name.isdecimal()), default=0)
        if newest > self._settings.attempt:
            raise SaveFailed(f"attempt {newest} of this run uploads from elsewhere by now")

    def _tidied(self, newest: StepObjects) -> str:
        try:
            self.tidy(newest)
        except OSError as e:
            return f"step {newest.step} is uploaded, but tidying up after it failed: {e.strerror}"
        return ""

    def tidy(self, newest: StepObjects) -> None:
        """Retention, once `newest` is committed. It and the newest others stay."""
        listed = withdrawals(self._store)
        alive: list[StepObjects] = []
        gone: list[StepObjects] = []
        for folder in all_folders(self._store):
            if folder == newest:
                continue
            if not is_committed(self._store, folder):
                if folder.step < newest.step:  # given up: ranks go through steps in one order
                    gone.append(folder)
            elif self._is_dead(folder, listed):
                gone.append(folder)
            else:
                alive.append(folder)
        older = sorted(f for f in alive if f.step <= newest.step)
        self._remove_all(gone + older[: max(0, len(older) - (self._settings.keep_last - 1))])

    def _is_dead(self, folder: StepObjects, listed: tuple[Withdrawal, ...]) -> bool:
        try:
            return is_withdrawn(stored_manifest(self._store, folder), listed)
        except CheckpointError:
            return False  # damaged: retention takes it in its turn

    def _remove_all(self, folders: Sequence[StepObjects]) -> None:
        """What cannot be removed is in nobody else's way. Raises: OSError, the first one."""
        failed: list[OSError] = []
        for folder in folders:
            try:
                self._remove(folder)
            except OSError as e:
                failed.append(e)
        if failed:
            raise failed[0]

    def _remove(self, folder: StepObjects) -> None:
        """The manifest first: half a step is none."""
        self._store.remove([folder.manifest])
        names = self._store.sizes(folder.path)
        self._store.remove([folder.path / name for name in names])

    def _text(self, path: Path) -> bytes:
        try:
            return read_whole(self._disk, path, limit_bytes=LIMIT_BYTES)
        except OSError as e:
            raise read_failure(e, path) from e

    def _put(self, path: Path, content: bytes) -> None:
        data = np.frombuffer(content, dtype=np.uint8)
        self._store.put(path, lambda: [data], size=len(content))


class _Source:
    """A rank's file on the disk, read and checked at once. Held open: retention may come."""

    def __init__(self, disk: Storage, folder: Path, manifest: Manifest, rank: int) -> None:
        self._file = OpenRankFile(disk, folder, manifest, rank, cache=ChunkCache(0))
        path = folder / manifest.files[rank].name
        head = np.empty(self._file.header.data_start, dtype=np.uint8)
        try:
            whole = disk.open(path)
            try:
                whole.read_into(0, head)
            finally:
                whole.close()
        except OSError as e:
            self._file.close()
            raise read_failure(e, path) from e
        self._head = head

    def blocks(self) -> Iterator[Bytes]:
        """Raises: DamagedCheckpoint, CheckpointError."""
        yield self._head
        header = self._file.header
        size = max(1, _BLOCK_BYTES // header.chunk_bytes) * header.chunk_bytes
        for offset in range(0, header.data_bytes, size):
            block = np.empty(min(size, header.data_bytes - offset), dtype=np.uint8)
            self._file.read(offset, block)
            yield block

    def close(self) -> None:
        self._file.close()


def run_id_of(store: ObjectStore) -> str:
    """Whose copies these are. Raises: OSError; RunFolderError if that cannot be read."""
    try:
        return str(json.loads(read_object(store, RUN_JSON))["run_id"])
    except (ValueError, KeyError, TypeError) as e:
        raise RunFolderError(f"{RUN_JSON} of the remote copies is damaged: {e!r}") from e
