"""A run's checkpoints: saved by all ranks, real in one rename, loaded newest first.

How a save goes: saving.py where training waits for it, background.py where it does not. How a load
goes: loading.py. What is on the disk: folder.py. Here: which of them, and what a failure means.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint import loading
from trainer.checkpoint.background import BackgroundSaves, WhenBusy
from trainer.checkpoint.fence import Fence
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.format import CHUNK_BYTES
from trainer.checkpoint.link import DirectLink, Link, ProcessLink
from trainer.checkpoint.peer.loading import Loaded
from trainer.checkpoint.peer.tier import MemoryTier, Peers
from trainer.checkpoint.remote_loading import load_newest
from trainer.checkpoint.room import RoomWatch, failed_text, too_many_text
from trainer.checkpoint.saving import ForegroundSaves, SaveSettings
from trainer.checkpoint.staging import Staging
from trainer.checkpoint.uploads import Remote, Uploads
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import TooManyFailedSaves
from trainer.records.run_files import RunFiles
from trainer.reports import SaveReport, UploadReport
from trainer.storage.local import LocalStorage, Storage
from trainer.storage.remote import open_store

_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, as one attempt sees them.

    `folder`: RunFiles.checkpoints. `run_hash`: over the run's frozen settings; a checkpoint of
    another one is refused ("" is not compared). `origin`: who writes (engine, stage), for people.
    `keep_every`: multiples of so many steps are kept for ever (0: none).
    `asynchronous`: training goes on while a writer process writes. What it does when both staging
    buffers are taken: `when_busy`. A writer that does nothing for `writer_timeout_s` is given up.
    `checksum_source`: find bits that flip between the copy and the write.
    `drills`: the writer process may be broken on purpose. `storage`: instead of the local disk;
    then everything is done in this process, also what would be asynchronous. `remote`: where saved
    steps are copied to, and from where a run goes on whose disk has less. `peers`: what is kept
    in memory besides. `expected_bytes`: see RoomWatch.
    """

    def __init__(
        self,
        folder: Path,
        *,
        attempt: int = 1,
        run_hash: str = "",
        keep_last: int = 2,
        keep_every: int = 0,
        max_failed_saves: int = 3,
        asynchronous: bool = False,
        when_busy: WhenBusy = "wait",
        writer_timeout_s: float = 300.0,
        checksum_source: bool = False,
        drills: bool = False,
        origin: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        remote: Remote | None = None,
        expected_bytes: int = 0,
        peers: Peers | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._folders = StepFolders(storage or LocalStorage(), folder)
        self._settings = SaveSettings(
            attempt=attempt,
            run_hash=run_hash,
            keep_last=keep_last,
            keep_every=keep_every,
            origin={**_versions(), **(origin or {})},
            chunk_bytes=chunk_bytes,
            owner=Fence(folder, attempt).known,
        )
        self._run = RunFiles(folder.parent)
        self._max_failed_saves = max_failed_saves
        self._foreground = ForegroundSaves(self._folders, self._settings)
        self._background: BackgroundSaves | None = None
        self._asynchronous = asynchronous
        self._when_busy = when_busy
        self._writer_timeout_s = writer_timeout_s
        self._checksum_source = checksum_source
        self._drills = drills
        self._has_own_storage = storage is not None
        self._failed_in_a_row = 0
        self._parent: int | None = None
        self._remote = remote
        self._uploads: Uploads | None = None
        self._room = RoomWatch(folder, expected_bytes)
        self._unheard: list[SaveReport] = []  # of saves that ended where nobody listened
        self._memory: MemoryTier | None = None
        if peers is not None:
            self._memory = MemoryTier(peers, self._settings, self._run, drills=drills)

    # --- saving ------------------------------------------------------------------------------

    def prepare(self, world: World, engine: Engine) -> None:
        """What the first save would otherwise stand still for: buffers, processes. Collective."""
        if self._asynchronous:
            self._saves(world).prepare(world, engine)
        if self._memory is not None:
            self._memory.prepare(world, engine, parent=self._parent)

    def save(
        self, world: World, engine: Engine, *, step: int, training: Mapping[str, Any]
    ) -> SaveReport:
        """Write and publish one checkpoint. Collective; durable when it returns.

        A failure is reported, not raised, and is the same on all ranks; the checkpoints before
        are untouched. A step that is stored and whole already is left as it is.
        Raises: TooManyFailedSaves after `max_failed_saves` failures in a row.
        """
        if world.place.rank == 0:
            self._room.look()
        if not self._asynchronous:
            report = self._foreground.save(
                world, engine, step=step, training=training, parent=self._parent
            )
            return self._counted(world, [report])[0]
        saves = self._saves(world)
        self._settle(world)
        started = time.monotonic()
        reports = saves.begin(world, engine, step=step, training=training)
        (report,) = self._counted(world, reports + saves.settle(world))
        return replace(report, stall_s=time.monotonic() - started)

    def begin(
        self, world: World, engine: Engine, *, step: int, training: Mapping[str, Any]
    ) -> list[SaveReport]:
        """Begin a save that goes on while training does; reports of what has ended. Collective.

        Raises: TooManyFailedSaves, as `save` does; so do `finish` and `drain`.
        """
        if not self._asynchronous:
            return [self.save(world, engine, step=step, training=training)]
        if world.place.rank == 0:
            self._room.look()
        saves = self._saves(world)
        saves.go_on()
        reports = saves.begin(world, engine, step=step, training=training)
        return self._heard(self._counted(world, reports))

    def written(self) -> bool:
        """Whether this rank's part of the save under way has ended, well or not. Cheap, local."""
        return self._background is not None and self._background.written()

    def finish(self, world: World) -> list[SaveReport]:
        """What comes next for the save that every rank has `written`: publication, or its report.

        Collective.
        """
        if self._background is None:
            return []
        return self._heard(self._counted(world, self._background.finish(world)))

    def drain(self, world: World) -> list[SaveReport]:
        """Wait for the saves under way, where training ends, and finish them. Collective."""
        if self._background is None:
            return self._heard([])
        return self._heard(self._counted(world, self._background.drain(world)))

    def close(self, *, for_good: bool = False) -> None:
        """End the processes. Not collective; never hangs. A save under way is lost.

        `for_good`: all is on the disk, so what lies in memory is given back.
        """
        if self._background is not None:
            self._background.close()
            self._background = None
        if self._uploads is not None:
            self._uploads.close()
            self._uploads = None
        if self._memory is not None:
            self._memory.close(for_good=for_good)

    def _saves(self, world: World) -> BackgroundSaves:
        if self._background is None:
            rank = world.place.rank
            self._background = BackgroundSaves(
                self._folders,
                self._settings,
                rank=rank,
                link=self._link(rank),
                staging=Staging(
                    chunk_bytes=self._settings.chunk_bytes,
                    checksums=self._checksum_source,
                    pin=world.device.type == "cuda",
                ),
                when_busy=self._when_busy,
            )
            self._background.parent = self._parent
        return self._background

    def _link(self, rank: int) -> Link:
        if self._has_own_storage:
            return DirectLink(self._folders)
        timeout_s, drills = self._writer_timeout_s, self._drills
        return ProcessLink(self._folders.root, rank=rank, patience_s=timeout_s, drills=drills)

    def _counted(self, world: World, reports: Sequence[SaveReport]) -> list[SaveReport]:
        """Failures in a row, the same on all ranks. Raises: TooManyFailedSaves."""
        for report in reports:
            if report.succeeded:
                self._failed_in_a_row, self._parent = 0, report.step
                if world.place.rank == 0:
                    self._room.saved(report.bytes)
                self._upload(world, report.step)
            elif not report.skipped:
                self._failed_in_a_row += 1
            failed, allowed = self._failed_in_a_row, self._max_failed_saves
            if failed >= allowed:
                raise TooManyFailedSaves(too_many_text(report, failed, run=self._run.root))
            if report.problem and world.place.rank == 0:
                _log.warning("%s", failed_text(report, failed, allowed=allowed))
        return list(reports)

    def _heard(self, reports: Sequence[SaveReport]) -> list[SaveReport]:
        told, self._unheard = [*self._unheard, *reports], []
        return [replace(report, memory=self.memory_note) for report in told]

    # --- states in memory ---------------------------------------------------------------------

    def said(self) -> tuple[float, float]:
        """For the step's sum: whether this rank's part of a state in memory has ended, and well."""
        return self._memory.said() if self._memory is not None else (0.0, 0.0)

    def keep(
        self,
        world: World,
        engine: Engine,
        *,
        step: int,
        told: tuple[float, float],
        training: Callable[[], Mapping[str, Any]],
    ) -> None:
        """Keep the state of this step in memory if it is due; `told`: the sums of what was `said`.

        After every step on all ranks. Collective now and then; waits for nobody.
        """
        if self._memory is not None:
            self._memory.keep(world, engine, step=step, told=told, training=training)

    @property
    def loaded_from(self) -> Loaded | None:
        """The state in memory that this attempt went on from; None if it was a disk's, or none."""
        return self._memory.loaded if self._memory is not None else None

    @property
    def memory_note(self) -> str:
        saves = self._memory.saves if self._memory is not None else None
        return saves.note if saves is not None else ""

    # --- loading -----------------------------------------------------------------------------

    def load_latest(self, world: World, engine: Engine) -> dict[str, Any] | None:
        """Fill the engine from the newest whole step; returns its training state. Collective.

        None if the run has no checkpoint yet. Damaged steps are moved to quarantine.
        Raises: RunFolderError if there are only damaged ones, or copies where this run shall not
        look; CheckpointMismatch if the newest is of another run or model; CheckpointError if it
        cannot be read. All ranks raise alike.
        """
        self._settle(world)
        run_hash = self._settings.run_hash
        if self._remote is not None:
            return self._load_newest(world, engine, self._remote)
        newer = self._newer(world, engine)
        found = loading.load_latest(world, engine, self._folders, run_hash=run_hash, newer=newer)
        if found is None:
            world.lead(lambda: loading.refuse_to_leave_copies(self._run))
            return None
        self._went_on_from(found[0])
        return found[1]

    def load(self, world: World, engine: Engine, *, step: int) -> dict[str, Any]:
        """Fill the engine from this step and no other; nothing is moved. Collective.

        Raises: CheckpointMismatch, DamagedCheckpoint, CheckpointError, alike on all ranks.
        """
        self._settle(world)
        run_hash = self._settings.run_hash
        training = loading.load_step(world, engine, self._folders, step=step, run_hash=run_hash)
        self._went_on_from(step)
        return training

    def _load_newest(self, world: World, engine: Engine, remote: Remote) -> dict[str, Any] | None:
        store = world.each(lambda: open_store(remote.url, remote.options))
        found = load_newest(
            world,
            engine,
            self._folders,
            store,
            run=self._run,
            run_hash=self._settings.run_hash,
            url=remote.url,
            newer=self._newer(world, engine),
        )
        if found is None:
            return None
        self._went_on_from(found.step)
        if found.newest_copy < found.step:  # the attempt before ended before it was copied
            self._upload(world, found.step, must=True)
        return found.training

    def _newer(self, world: World, engine: Engine) -> loading.Newer | None:
        """How a state in memory is loaded that is newer than what else there is."""
        memory = self._memory
        if memory is None:
            return None

        def newer(than: int) -> tuple[int, dict[str, Any]] | None:
            found = memory.load(world, engine, newer_than=than)
            return (found.step, found.training) if found is not None else None

        return newer

    def _went_on_from(self, step: int) -> None:
        self._parent = step
        if self._background is not None:
            self._background.parent = step

    def _settle(self, world: World) -> None:
        """A save under way may be the step to be loaded."""
        if self._background is not None:
            self._unheard += self._counted(world, self._background.settle(world))

    # --- copies elsewhere --------------------------------------------------------------------

    def uploaded(self) -> list[UploadReport]:
        """Uploads that have ended since the last call. Local, never waits."""
        return self._uploads.reports() if self._uploads is not None else []

    def drain_uploads(self, world: World, beat: Callable[[], None]) -> list[UploadReport]:
        """Wait for the last step's copy where training ends, `drain_s` at most. Collective.

        `beat`: called twice a second, to show that this rank lives.
        """
        return self._uploads.drain(world, beat) if self._uploads is not None else []

    def _upload(self, world: World, step: int, *, must: bool = False) -> None:
        if self._remote is None:
            return
        if self._uploads is None:
            self._uploads = Uploads(
                self._remote,
                self._run,
                attempt=self._settings.attempt,
                rank=world.place.rank,
                world_size=world.place.world_size,
            )
        self._uploads.published(world, step, must=must)

    # --- looking -----------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """Published steps, oldest first."""
        return self._folders.steps()

    # --- going back --------------------------------------------------------------------------

    def set_aside(self, world: World, *, after: int, why: str) -> list[int]:
        """Move the steps after `after` to quarantine: the run goes on from there. Collective.

        Newest first, so that what a kill leaves behind is a run that has not yet gone back.
        """

        def move() -> list[int]:
            gone = [step for step in self._folders.steps() if step > after]
            if self._uploads is not None:
                self._uploads.withdraw(after)
            for step in reversed(gone):
                self._folders.quarantine(step, why)
            return gone

        self._settle(world)
        if self._memory is not None:
            self._memory.forget(world, after)
        return world.lead(move)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}
