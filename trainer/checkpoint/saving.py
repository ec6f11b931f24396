"""What every save shares, and the save that training waits for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainer.checkpoint.agreement import Disagreed, agree, hear, nowhere
from trainer.checkpoint.contents import Contents, agree_on_contents
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.held import live_blocks, plan_fragments
from trainer.checkpoint.loading import quarantine
from trainer.checkpoint.orders import Discard, Publish, WriteFile, discard, publish, write_file
from trainer.checkpoint.verify import verify_files
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.records.manifest import Manifest, RankFile, encode, rank_file_name
from trainer.records.owner import Owner
from trainer.reports import SaveReport


@dataclass(frozen=True, kw_only=True)
class SaveSettings:
    """What is the same for every save of an attempt. See CheckpointStore."""

    attempt: int
    run_hash: str
    keep_last: int
    keep_every: int
    origin: Mapping[str, Any]
    chunk_bytes: int
    owner: Owner | None  # of the run, when this rank started

    def publication(
        self,
        contents: Contents,
        step: int,
        *,
        training: str,
        parent: int | None,
        rows: Sequence[Any],
    ) -> Publish:
        """Rank 0's order once every file is durable. `rows`: [size, digest, spans] by rank."""
        files = tuple(
            RankFile(rank_file_name(rank), size, digest, tuple((a, b) for a, b in spans))
            for rank, (size, digest, spans) in enumerate(rows)
        )
        manifest = Manifest(
            step=step,
            world_size=len(files),
            attempt=self.attempt,
            run_hash=self.run_hash,
            parent_step=parent,
            created=time.time(),
            rule=contents.rule,
            tensors=contents.tensors,
            files=files,
            training=json.loads(training),
            origin=self.origin,
        )
        return Publish(
            step=step,
            attempt=self.attempt,
            world_size=len(files),
            manifest=encode(manifest).decode(),
            keep_last=self.keep_last,
            keep_every=self.keep_every,
            needed_before=manifest.training.get("needed_before"),
            best_step=manifest.training.get("best_step"),
            owner=asdict(self.owner) if self.owner else None,
        )


class ForegroundSaves:
    """Saves that training waits for; nothing is copied, the file is written from live memory.

    rank 0: is it there already -> all: what do I hold -> all: my file, fsync -> rank 0: manifest
    last, fsync, fsync folder, rename, fsync parent; pointer; retention. Every arrow is an agreement
    of all ranks.
    """

    def __init__(self, folders: StepFolders, settings: SaveSettings) -> None:
        self._folders = folders
        self._settings = settings
        self._contents: Contents | None = None

    def save(
        self,
        world: World,
        engine: Engine,
        *,
        step: int,
        training: Mapping[str, Any],
        parent: int | None,
    ) -> SaveReport:
        """Durable when it returns, or reported as failed, alike on all ranks. Collective."""
        started = time.perf_counter()

        def report(*, succeeded: bool, stored: int = 0, problem: str = "") -> SaveReport:
            passed_s = time.perf_counter() - started
            return SaveReport(
                step=step,
                succeeded=succeeded,
                bytes=stored,
                path=str(self._folders.step(step)),
                problem=problem,
                stall_s=passed_s,
                write_s=passed_s,
            )

        try:
            whole = already_whole(world, self._folders, step)
            if whole is not None:
                return report(succeeded=True, stored=whole)
            contents = self._contents = agree_on_contents(
                world, engine, known=self._contents, held=lambda: plan_fragments(engine)
            )
            done = agree(
                world,
                lambda: self._write(world, engine, contents, step),
                lambda rows: self._publish(contents, step, training, parent, rows),
            )
            return report(succeeded=True, stored=int(done["bytes"]), problem=str(done["problem"]))
        except Disagreed as e:
            order = Discard(step=step, attempt=self._settings.attempt)
            world.lead(lambda: discard(self._folders, order))
            return report(succeeded=False, problem=f"step {step} was not saved: {e}")

    def _write(self, world: World, engine: Engine, contents: Contents, step: int) -> list[Any]:
        order = WriteFile(
            step=step,
            attempt=self._settings.attempt,
            rank=world.place.rank,
            world_size=world.place.world_size,
            chunk_bytes=self._settings.chunk_bytes,
        )
        blocks = live_blocks(engine, contents.mine)
        done = write_file(self._folders, order, contents.mine, blocks)
        return [done["size"], done["digest"], contents.spans]

    def _publish(
        self,
        contents: Contents,
        step: int,
        training: Mapping[str, Any],
        parent: int | None,
        rows: Sequence[Any],
    ) -> dict[str, Any]:
        order = self._settings.publication(
            contents, step, training=encoded(training), parent=parent, rows=rows
        )
        return {**publish(self._folders, order), "bytes": sum(size for size, _, _ in rows)}


def already_whole(world: World, folders: StepFolders, step: int) -> int | None:
    """Bytes of the step if it is stored and whole, each rank checking its share; else None.

    A damaged one is moved to quarantine. Collective. Raises: Disagreed.
    """
    rank, size = world.place.rank, world.place.world_size

    def is_there() -> bool:
        return folders.storage.exists(folders.step(step))

    if nowhere(world, lambda: rank == 0 and is_there()) or not hear(world, is_there):
        return None

    def check() -> int:
        manifest, _ = folders.manifest(step)
        mine = range(rank, manifest.world_size, size)
        verify_files(folders.storage, folders.step(step), manifest, mine)
        return sum(manifest.files[r].size for r in mine)

    try:
        return int(agree(world, check, sum))
    except Disagreed as e:
        if not e.is_damage:
            raise
        quarantine(world, folders, step, str(e))
        return None


def encoded(training: Mapping[str, Any]) -> str:
    """By value, now. Raises: ValueError if it is not plain JSON with finite numbers."""
    return json.dumps(training, allow_nan=False)
