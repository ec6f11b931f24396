"""Filling an engine from a stored step: all ranks read, check and agree, or none goes on.

Rank 0 names the newest step -> all: manifest, engine.load, checking every chunk while reading ->
verdict. What is damaged goes to quarantine and the step before is tried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from trainer.checkpoint.agreement import Disagreed, agree
from trainer.checkpoint.folder import StepFolders, on_disk
from trainer.checkpoint.ranges import StoredTensors
from trainer.checkpoint.reader import CheckpointReader, PatientReader
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError, CheckpointMismatch, DamagedCheckpoint, RunFolderError
from trainer.records.copies import newest_of
from trainer.records.manifest import Manifest
from trainer.records.run_files import RunFiles

_log = logging.getLogger("trainer.checkpoint")
# Fills the engine from a place that has a step newer than the given one, where there is one.
Newer = Callable[[int], tuple[int, dict[str, Any]] | None]


def load_latest(
    world: World,
    engine: Engine,
    folders: StepFolders,
    *,
    run_hash: str,
    newer: Newer | None = None,
) -> tuple[int, dict[str, Any]] | None:
    """As CheckpointStore.load_latest says; also which step it was."""
    damaged = False
    while True:
        found = world.lead(lambda: _newest(folders))
        newest = -1 if found["step"] is None else int(found["step"])
        if newer is not None and (better := newer(newest)) is not None:
            return better
        if found["step"] is None:
            if not found["quarantined"]:
                world.lead(lambda: refuse_to_forget(folders))
                return None
            raise RunFolderError(
                f"{folders.root}: every checkpoint is damaged and now in quarantine/ "
                f"({', '.join(found['quarantined'][-3:])}, why.txt inside); {way_out(folders)}"
            )
        try:
            training = _load(world, engine, folders, newest, run_hash=run_hash)
        except Disagreed as e:
            if not e.is_damage:
                raise _as_error(e) from e
            quarantine(world, folders, newest, str(e))
            damaged = True
            continue
        if damaged and world.place.rank == 0:
            _log.warning("step %d was loaded instead", newest)
        return newest, training


def refuse_to_forget(folders: StepFolders) -> None:
    """Raises: RunFolderError if a run without a step has had one: it would begin anew, unasked."""
    if strays := folders.strays():
        raise RunFolderError(
            f"{folders.root}: no checkpoint is there, but {strays[0]} tells that there has been "
            f"one; {way_out(folders)}"
        )


def refuse_to_leave_copies(run: RunFiles) -> None:
    """Raises: RunFolderError if a run without a step has copies of some, and is not to use them."""
    try:
        known = newest_of(run.copies)
    except (OSError, ValueError) as e:
        raise RunFolderError(f"{run.copies}: {e}; bring it back, or remove it") from e
    if known is not None:
        url, step = known
        raise RunFolderError(
            f"{run.checkpoints} has no checkpoint, but step {step} was copied to {url}: go on with "
            f"checkpoint.remote.url={url.rpartition('/')[0]}, or remove {run.copies} to begin anew"
        )


def way_out(folders: StepFolders) -> str:
    """Of a run whose checkpoints are all damaged: resume.mode=never is refused where a run is."""
    return (
        f"mend or bring back a whole one as {folders.root}/step-..., or begin anew: with another "
        f"run.name, or under this one once {folders.root.parent} has been moved out of the way"
    )


def load_step(
    world: World, engine: Engine, folders: StepFolders, *, step: int, run_hash: str
) -> dict[str, Any]:
    """As CheckpointStore.load says."""
    try:
        return _load(world, engine, folders, step, run_hash=run_hash)
    except Disagreed as e:
        raise _as_error(e) from e


def quarantine(world: World, folders: StepFolders, step: int, why: str) -> None:
    """Move a damaged step out of every reader's sight. Collective."""
    where = world.lead(lambda: str(folders.quarantine(step, why)))
    if world.place.rank == 0:
        _log.warning("step %d is damaged (%s); moved to %s", step, why, where)


def _newest(folders: StepFolders) -> dict[str, Any]:
    steps, bad = on_disk(folders)
    return {"step": steps[-1] if steps else None, "quarantined": bad}


def _load(
    world: World, engine: Engine, folders: StepFolders, step: int, *, run_hash: str
) -> dict[str, Any]:
    """Raises: Disagreed. Nothing may train on the engine before this has returned."""
    seen: list[Manifest] = []

    def look() -> str:
        manifest, digest = folders.manifest(step)
        _check_belongs(manifest, engine, run_hash)
        seen.append(manifest)
        return digest

    agree(world, look, _all_equal)
    stored = StoredTensors(folders.storage, folders.step(step), seen[0])
    source = PatientReader(CheckpointReader(stored))
    try:
        # Steps that were left out moved no parameter, and no moment's bias.
        engine.load(source, step=int(seen[0].training.get("updates", step)))
    finally:
        stored.close()
    agree(world, source.verdict, _all_equal)
    return dict(seen[0].training)


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
