"""Going on from the newest whole step among the disk and the remote copies.

Rank 0 looks at both and names one; all ranks read it, each the ranges that it will hold, through
the reader that a disk's steps have. A damaged copy is passed over, never deleted: what is kept in
another place is not this attempt's to judge. A damaged step of the disk goes to quarantine.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import Any

from trainer.checkpoint.folder import StepFolders, on_disk
from trainer.checkpoint.loading import (
    Newer,
    load_step,
    quarantine,
    refuse_to_forget,
    refuse_to_leave_copies,
    way_out,
)
from trainer.checkpoint.remote_steps import (
    CHECKPOINTS,
    StepsView,
    all_folders,
    committed,
    is_committed,
    put_withdrawals,
    withdrawals,
)
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError, DamagedCheckpoint, RunFolderError
from trainer.records.copies import copied_to, emptied
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import merged, read_withdrawals
from trainer.storage.patient import Patient
from trainer.storage.remote import ObjectStore

_log = logging.getLogger("trainer.checkpoint")
_DELAYS_S = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Found:
    step: int
    training: dict[str, Any]
    is_copy: bool  # it came from the remote copies
    newest_copy: int  # 0: there is none, or nobody knows


def load_newest(
    world: World,
    engine: Engine,
    disk: StepFolders,
    store: ObjectStore,
    *,
    run: RunFiles,
    run_hash: str,
    url: str,
    newer: Newer | None = None,
    delays_s: tuple[float, ...] = _DELAYS_S,
) -> Found | None:
    """As CheckpointStore.load_latest says, with the copies under `url`. Collective.

    None if there is no step anywhere. Raises: CheckpointError if the disk has none and the copies
    are out of reach, RunFolderError if they are not where they were put: the run might begin anew
    though it was saved.
    """
    patient = Patient(store, delays_s=delays_s)
    there = world.lead(lambda: _copies(patient, run, url))
    copies = {int(step): str(name) for step, name in there["folders"].items()}
    newest_copy = max(copies, default=0)
    _warn(world, there)
    damaged, passed_over = False, list[int]()
    while True:
        own = world.lead(lambda: max(on_disk(disk)[0], default=-1))
        copy = max((s for s in copies if s not in passed_over), default=-1)
        if newer is not None and (better := newer(max(own, copy))) is not None:
            return Found(*better, False, newest_copy)
        if max(own, copy) < 0:
            bad = world.lead(disk.quarantined)
            _refuse_to_begin(disk, url, bad, passed_over, there)
            world.lead(lambda: refuse_to_forget(disk))
            world.lead(lambda: refuse_to_leave_copies(run))
            return None
        step = max(own, copy)
        folders = disk
        if copy > own:
            folders = StepFolders(StepsView(patient, copies), CHECKPOINTS)
        try:
            training = load_step(world, engine, folders, step=step, run_hash=run_hash)
        except DamagedCheckpoint as e:
            if copy <= own:
                quarantine(world, disk, step, str(e))
                damaged = True
                continue
            passed_over.append(step)
            if world.place.rank == 0:
                said = "the copy of step %d in %s is damaged (%s); passed over, the one before it"
                _log.warning(f"{said} is tried", step, url, e)
            continue
        if world.place.rank == 0 and (copy > own or damaged or passed_over):
            where = f"from its copy in {url}" if copy > own else f"from {disk.root}"
            _log.warning("step %d was loaded %s", step, where)
        return Found(step, training, copy > own, newest_copy)


def _copies(store: ObjectStore, run: RunFiles, url: str) -> dict[str, Any]:
    nothing = {"folders": {}, "problem": "", "emptied": ""}
    try:
        known = copied_to(run.copies, url)
        if not any(is_committed(store, folder) for folder in all_folders(store)):
            # Nor is anything put there: an upload looks first whether this is the place.
            lost = "" if known is None else emptied(run.copies, url, known)
            return nothing | {"emptied": lost}
        there = withdrawals(store)
        listed = merged(there, read_withdrawals(run.withdrawn))
        if listed != there:  # now, not with the next save: this machine may be gone by then
            with contextlib.suppress(OSError):  # the uploader will
                put_withdrawals(store, listed)
        folders = {folder.step: folder.name for folder in committed(store, listed)}
    except OSError as e:
        return nothing | {"problem": e.strerror or str(e)}
    except ValueError as e:
        raise CheckpointError(f"{run.root}: {e}") from e
    return nothing | {"folders": folders}


def _warn(world: World, there: dict[str, Any]) -> None:
    """The disk may have what the copies cannot give; a person should know all the same."""
    if there["problem"] and world.place.rank == 0:
        _log.warning("the remote copies are out of reach: %s", there["problem"])
    if there["emptied"] and world.place.rank == 0:
        _log.warning("%s", there["emptied"])


def _refuse_to_begin(
    disk: StepFolders, url: str, bad: list[str], passed_over: list[int], there: dict[str, Any]
) -> None:
    """Raises: CheckpointError, RunFolderError, unless the run has never saved anything."""
    if there["emptied"]:
        raise RunFolderError(f"{disk.root} has no checkpoint, and {there['emptied']}")
    if problem := there["problem"]:
        raise CheckpointError(
            f"{disk.root} has no checkpoint, and whether {url} has one cannot be told: {problem}; "
            "start again when it is there, or without it: checkpoint.remote.url=null"
        )
    if passed_over or bad:
        what = [f"{len(bad)} in {disk.root}/quarantine"] if bad else []
        what += [f"the copies of steps {passed_over} in {url}"] if passed_over else []
        raise RunFolderError(f"every checkpoint is damaged ({' and '.join(what)}); {way_out(disk)}")
