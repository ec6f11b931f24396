"""A run's checkpoints: saved by all ranks, real in one rename, loaded newest first.

A save, in order (every arrow is an agreement of all ranks; a failure anywhere is one everywhere):

    rank 0: empty incoming folder -> all: what do I hold -> all: my file, fsync
    -> rank 0: manifest last, fsync, fsync folder, rename, fsync parent; pointer; retention

A load: rank 0 names the newest step -> all: manifest, engine.load, checking every chunk while
reading -> verdict. What is damaged goes to quarantine and the step before is tried.
"""

from __future__ import annotations

import contextlib
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoint.agreement import Disagreed, agree
from trainer.checkpoint.contents import Contents, agree_on_contents
from trainer.checkpoint.fence import Fence
from trainer.checkpoint.folder import StepFolders, doomed
from trainer.checkpoint.format import CHUNK_BYTES, Identity
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.reader import CheckpointReader, PatientReader
from trainer.checkpoint.verify import verify_files
from trainer.checkpoint.writer import live_blocks, write_rank_file
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import (
    CheckpointError,
    CheckpointMismatch,
    DamagedCheckpoint,
    RunFolderError,
    SaveFailed,
    TooManyFailedSaves,
)
from trainer.records.manifest import Manifest, RankFile, digest_of, encode, rank_file_name
from trainer.reports import SaveReport
from trainer.storage.local import LocalStorage, Storage

_log = logging.getLogger(__name__)


class CheckpointStore:
    """The checkpoints of one run, as one attempt sees them.

    `folder`: RunFiles.checkpoints. `run_hash`: over the run's frozen settings; a checkpoint of
    another one is refused ("" is not compared). `origin`: who writes (engine, stage), for people.
    `keep_every`: multiples of so many steps are kept for ever (0: none).
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
        origin: Mapping[str, Any] | None = None,
        storage: Storage | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self._storage = storage or LocalStorage()
        self._folders = StepFolders(self._storage, folder)
        self._attempt = attempt
        self._fence = Fence(folder, attempt)
        self._run_hash = run_hash
        self._keep_last = keep_last
        self._keep_every = keep_every
        self._max_failed_saves = max_failed_saves
        self._origin = {**_versions(), **(origin or {})}
        self._chunk_bytes = chunk_bytes
        self._contents: Contents | None = None
        self._failed_in_a_row = 0
        self._parent: int | None = None

    # --- saving ------------------------------------------------------------------------------

    def save(
        self, world: World, engine: Engine, *, step: int, training: Mapping[str, Any]
    ) -> SaveReport:
        """Write and publish one checkpoint. Collective; durable when it returns.

        A failure is reported, not raised, and is the same on all ranks; the checkpoints before
        are untouched. A step that is stored and whole already is left as it is.
        Raises: TooManyFailedSaves after `max_failed_saves` failures in a row.
        """
        started = time.perf_counter()
        try:
            stored_bytes, problem = self._save(world, engine, step, training)
            succeeded, self._failed_in_a_row, self._parent = True, 0, step
        except SaveFailed as e:
            succeeded, stored_bytes, problem = False, 0, str(e)
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= self._max_failed_saves:
                raise TooManyFailedSaves(
                    f"{self._failed_in_a_row} saves in a row failed, as many as "
                    f"checkpoint.max_failed_saves allows; the last: {e}"
                ) from e
        if problem and world.place.rank == 0:
            _log.warning("%s", problem)
        return SaveReport(
            step=step,
            succeeded=succeeded,
            stall_s=time.perf_counter() - started,
            bytes=stored_bytes,
            path=str(self._folders.step(step)),
            problem=problem,
        )

    def begin(
        self, world: World, engine: Engine, *, step: int, training: Mapping[str, Any]
    ) -> list[SaveReport]:
        """Begin a save that goes on while training does; reports of what has ended. Collective."""
        return [self.save(world, engine, step=step, training=training)]

    def written(self) -> bool:
        """Whether this rank's part of the save under way has ended, well or not. Cheap, local."""
        return False

    def finish(self, world: World) -> list[SaveReport]:
        """Publish the save that every rank has `written`, or say that it failed. Collective."""
        return []

    def drain(self, world: World) -> list[SaveReport]:
        """Wait for the save under way, if there is one, and finish it. Collective."""
        return []

    def _save(
        self, world: World, engine: Engine, step: int, training: Mapping[str, Any]
    ) -> tuple[int, str]:
        """Bytes stored over all ranks, and what went wrong after the step was safe."""
        try:
            if not agree(world, _nothing, lambda _: self._begin(step)):
                whole = self._already_whole(world, step)
                if whole is not None:
                    return whole, ""
            contents = agree_on_contents(world, engine, known=self._contents)
            self._contents = contents
            done = agree(
                world,
                lambda: self._write(world, engine, contents, step),
                lambda rows: self._publish(contents, step, training, rows),
            )
            return int(done["bytes"]), str(done["problem"])
        except Disagreed as e:
            world.lead(self._discard)
            raise SaveFailed(f"step {step} was not saved: {e}") from e

    def _begin(self, step: int) -> bool:
        """False if the step is there already."""
        if self._storage.exists(self._folders.step(step)):
            return False
        self._folders.begin(step, self._attempt)
        return True

    def _already_whole(self, world: World, step: int) -> int | None:
        """Check the stored step, each rank its share; None once a damaged one is out of the way."""
        rank, size = world.place.rank, world.place.world_size

        def check() -> int:
            manifest, _ = self._folders.manifest(step)
            mine = range(rank, manifest.world_size, size)
            verify_files(self._storage, self._folders.step(step), manifest, mine)
            return sum(manifest.files[r].size for r in mine)

        try:
            return int(agree(world, check, sum))
        except Disagreed as e:
            if not e.is_damage:
                raise
            self._quarantine(world, step, str(e))
            agree(world, _nothing, lambda _: self._begin(step))
            return None

    def _write(self, world: World, engine: Engine, contents: Contents, step: int) -> list[Any]:
        place = world.place
        written = write_rank_file(
            self._storage,
            self._folders.incoming(step, self._attempt),
            Identity(step, place.rank, place.world_size),
            contents.mine,
            live_blocks(engine, contents.mine),
            chunk_bytes=self._chunk_bytes,
        )
        return [written.size, written.digest, contents.spans]

    def _publish(
        self, contents: Contents, step: int, training: Mapping[str, Any], rows: Sequence[Any]
    ) -> dict[str, Any]:
        """Rank 0, once every file is durable. After the rename nothing can undo the save."""
        files = tuple(
            RankFile(rank_file_name(rank), size, digest, tuple((a, b) for a, b in spans))
            for rank, (size, digest, spans) in enumerate(rows)
        )
        manifest = Manifest(
            step=step,
            world_size=len(files),
            attempt=self._attempt,
            run_hash=self._run_hash,
            parent_step=self._parent,
            created=time.time(),
            rule=contents.rule,
            tensors=contents.tensors,
            files=files,
            training=training,
            origin=self._origin,
        )
        content = encode(manifest)
        self._fence.check()
        self._folders.publish(self._folders.incoming(step, self._attempt), step, content)
        problem = ""
        try:
            self._folders.point(step, digest_of(content))
            kept = self._folders.steps()
            for old in doomed(kept, keep_last=self._keep_last, keep_every=self._keep_every):
                self._folders.remove(old)
        except OSError as e:
            problem = f"step {step} is saved, but tidying up after it failed: {e}"
        return {"bytes": sum(f.size for f in files), "problem": problem}

    def _discard(self) -> None:
        """Give back the room of a failed save; what cannot be removed now is reaped later."""
        with contextlib.suppress(OSError):
            self._folders.reap(self._attempt)

    # --- loading -----------------------------------------------------------------------------

    def load_latest(self, world: World, engine: Engine) -> dict[str, Any] | None:
        """Fill the engine from the newest whole step; returns its training state. Collective.

        None if the run has no checkpoint yet. Damaged steps are moved to quarantine.
        Raises: RunFolderError if there are only damaged ones; CheckpointMismatch if the newest is
        of another run or model; CheckpointError if it cannot be read. All ranks raise alike.
        """
        while True:
            found = world.lead(self._newest)
            if found["step"] is None:
                if not found["quarantined"]:
                    return None
                raise RunFolderError(
                    f"{self._folders.root}: every checkpoint is damaged and now in quarantine/ "
                    f"({', '.join(found['quarantined'][-3:])}, why.txt inside); bring back a whole "
                    "one, or start anew with resume.mode=never"
                )
            try:
                return self._load(world, engine, int(found["step"]))
            except Disagreed as e:
                if not e.is_damage:
                    raise _as_error(e) from e
                self._quarantine(world, int(found["step"]), str(e))

    def load(self, world: World, engine: Engine, *, step: int) -> dict[str, Any]:
        """Fill the engine from this step and no other; nothing is moved. Collective.

        Raises: CheckpointMismatch, DamagedCheckpoint, CheckpointError, alike on all ranks.
        """
        try:
            return self._load(world, engine, step)
        except Disagreed as e:
            raise _as_error(e) from e

    def _newest(self) -> dict[str, Any]:
        steps = self._folders.steps()
        quarantined = self._folders.quarantined()
        return {"step": steps[-1] if steps else None, "quarantined": quarantined}

    def _load(self, world: World, engine: Engine, step: int) -> dict[str, Any]:
        """Raises: Disagreed. Nothing may train on the engine before this has returned."""
        seen: list[Manifest] = []

        def look() -> str:
            manifest, digest = self._folders.manifest(step)
            _check_belongs(manifest, engine, self._run_hash)
            seen.append(manifest)
            return digest

        agree(world, look, _all_equal)
        stored = StoredTensors(self._storage, self._folders.step(step), seen[0])
        source = PatientReader(CheckpointReader(stored))
        try:
            engine.load(source, step=step)
        finally:
            stored.close()
        agree(world, source.verdict, _all_equal)
        self._parent = step
        return dict(seen[0].training)

    def _quarantine(self, world: World, step: int, why: str) -> None:
        def move() -> str:
            return str(self._folders.quarantine(step, why))

        where = world.lead(move)
        if world.place.rank == 0:
            _log.warning("step %d is damaged (%s); moved to %s", step, why, where)

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
            for step in reversed(gone):
                self._folders.quarantine(step, why)
            return gone

        self._settle(world)
        return world.lead(move)


def _check_belongs(manifest: Manifest, engine: Engine, run_hash: str) -> None:
    """Raises: CheckpointMismatch naming the first tensor that differs."""
    where = f"checkpoint of step {manifest.step}"
    if run_hash and manifest.run_hash and manifest.run_hash != run_hash:
        raise CheckpointMismatch(
            f"{where}: it belongs to another run ({manifest.run_hash[:12]}, "
            f"this one is {run_hash[:12]}); use another run.name"
        )
    stored = {t.name: t.shape for t in manifest.tensors}
    for name, shape in engine.layout():
        if name not in stored:
            raise CheckpointMismatch(f"{where}: it has no tensor {name!r}, which the model trains")
        if stored[name] != tuple(shape):
            raise CheckpointMismatch(
                f"{where}: {name!r} has shape {list(stored[name])}, "
                f"but this model's is {list(shape)}"
            )
    extra = stored.keys() - {name for name, _ in engine.layout()}
    if extra:
        raise CheckpointMismatch(
            f"{where}: it has {len(extra)} tensors that the model does not train, "
            f"{min(extra)!r} for one"
        )


def _all_equal(values: Sequence[Any]) -> None:
    if any(v != values[0] for v in values):
        raise CheckpointError("the ranks see different checkpoints; is the folder shared by all?")


def _as_error(e: Disagreed) -> CheckpointError:
    if e.is_damage:
        return DamagedCheckpoint(str(e))
    return CheckpointMismatch(str(e)) if e.is_mismatch else CheckpointError(str(e))


def _nothing() -> None:
    return None


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}
