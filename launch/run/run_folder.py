"""Run folders: create, find, own, list. Nothing in one names where it is, so it can be moved."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from launch.run.lease import is_silent
from launch.run.liveness import ProcessMark, is_alive, is_elsewhere, own_mark, read_mark
from trainer.config.names import nearest
from trainer.errors import Refused, RunFolderError, Superseded
from trainer.records.attempt import read_stop
from trainer.records.json_file import fsync_folder, read_json, write_json
from trainer.records.owner import Owner, read_owner, write_owner
from trainer.records.run_files import AttemptFiles, RunFiles

FORMAT = 1
DEFAULT_ROOT = "runs"
REMOVING = ".removing"  # as trainer/checkpoint/folder.py names what is to be deleted
_VERSIONS_OF = ("longhaul", "torch", "deepspeed", "transformers")


@dataclass(frozen=True)
class RunRecord:
    """run.json: who the run is, for life. `name` is the one it was created under."""

    run_id: str
    name: str
    created: float  # seconds since the epoch
    frozen_hash: str  # over the settings that may never change
    config: dict[str, Any]  # as resolved when the run was created
    versions: dict[str, str]


def _with_nothing(run: RunFiles) -> None:
    """A run begins with its record alone."""


def create(
    root: Path,
    *,
    config: dict[str, Any],
    frozen_hash: str,
    run_id: str = "",
    fill: Callable[[RunFiles], None] = _with_nothing,
) -> RunFiles:
    """A new run folder, readable by its owner alone; complete from its first moment.

    `run_id`: of a run that was made elsewhere and is to be carried here. `fill` puts in what else
    it begins with.

    Raises: RunFolderError if something that is no empty folder has its name.
    """
    name = str(config["run"]["name"])
    run = RunFiles(root / name)
    record = RunRecord(
        run_id=run_id or secrets.token_hex(8),
        name=name,
        created=time.time(),
        frozen_hash=frozen_hash,
        config=config,
        versions=installed_versions(),
    )
    root.mkdir(parents=True, exist_ok=True)
    staging = root / f".{name}.incoming-{record.run_id}"
    staging.mkdir(mode=0o700)
    try:
        write_json(RunFiles(staging).run_json, {"format": FORMAT, **asdict(record)})
        fill(RunFiles(staging))
        staging.rename(run.root)
    except OSError as e:
        shutil.rmtree(staging, ignore_errors=True)
        raise RunFolderError(f"cannot create the run folder {run.root}: {e.strerror}") from e
    fsync_folder(root)
    return run


def read_record(run: RunFiles) -> RunRecord:
    """Raises: RunFolderError if this is no run folder, or one of another version."""
    if not run.root.is_dir():
        raise RunFolderError(f"{run.root} is not a run folder: it is not a folder")
    try:
        value: dict[str, Any] = read_json(run.run_json)
        found = value.pop("format", None)
        if found == FORMAT:
            return RunRecord(**value)
    except FileNotFoundError:
        raise RunFolderError(
            f"{run.root} is not a run folder (it has no run.json); choose another run.name"
        ) from None
    except (ValueError, TypeError, AttributeError) as e:
        raise RunFolderError(f"{run.run_json} is damaged: {e}") from e
    raise RunFolderError(f"{run.run_json} has format {found}, this version reads {FORMAT}")


def existing(root: Path, name: str) -> RunFiles | None:
    """The run of that name; None if its place is free (missing, or an empty folder).

    Raises: RunFolderError if something else is there.
    """
    run = RunFiles(root / name)
    if not os.path.lexists(run.root) or (run.root.is_dir() and not any(run.root.iterdir())):
        return None
    read_record(run)
    return run


def find(name: str, *, root: Path = Path(DEFAULT_ROOT)) -> RunFiles:
    """The run with that name under `root`, or at that path.

    Raises: Refused with the nearest names if there is none; RunFolderError if it is no run folder.
    """
    by_name = root / name
    for candidate in (by_name, Path(name)):
        if candidate.is_dir() and (candidate / "run.json").exists():
            run = RunFiles(candidate)
            read_record(run)
            return run
    if "/" in name and Path(name).exists():
        read_record(RunFiles(Path(name)))  # says what it is instead
    names = [run.name for run in list_runs(root)]
    near = nearest(name, names)
    if near is not None:
        hint = f"; did you mean {near}?"
    else:
        hint = f"; there is {', '.join(sorted(names)[:8])}" if names else f"; {root}/ has no runs"
    raise Refused(f"there is no run {name!r} under {root}/{hint}")


def list_runs(root: Path) -> list[RunFiles]:
    """Run folders under `root` by name; what is no run folder is left out."""
    if not root.is_dir():
        return []
    found = (p for p in root.iterdir() if not p.name.startswith(".") and (p / "run.json").exists())
    return [RunFiles(p) for p in sorted(found)]


def attempts(run: RunFiles) -> list[AttemptFiles]:
    """Oldest first."""
    if not run.attempts.is_dir():
        return []
    numbers = sorted(int(p.name) for p in run.attempts.iterdir() if p.name.isdigit())
    return [run.attempt(number) for number in numbers]


def new_attempt(run: RunFiles) -> AttemptFiles:
    """The folder of the next attempt, taken atomically, and the run's ownership with it."""
    run.attempts.mkdir(mode=0o700, exist_ok=True)
    while True:
        known = attempts(run)
        files = run.attempt(known[-1].number + 1 if known else 1)
        try:
            files.root.mkdir(mode=0o700)
        except FileExistsError:  # somebody else was faster; the next number is ours
            continue
        own(run, files.number)
        return files


def own(run: RunFiles, attempt: int) -> None:
    """From here on only this process's attempt may write; older ones see it and leave.

    Saves that were under way are moved off afterwards: one that was just being published is either
    published before, and seen, or not at all.
    """
    mark = own_mark()
    write_owner(run.owner, Owner(attempt, mark.host, mark.pid, mark.start_ticks, mark.boot_id))
    for path in run.checkpoints.glob("step-*.incoming-*"):
        if not path.name.endswith(REMOVING):
            with suppress(OSError):  # gone meanwhile, or another file system's trouble
                path.rename(path.with_name(path.name + REMOVING))


def owner(run: RunFiles) -> int | None:
    """The attempt that may write; None if there is none yet, or the file is damaged."""
    try:
        found = read_owner(run.owner)
    except Superseded:
        return None
    return found.attempt if found else None


def running(run: RunFiles) -> ProcessMark | None:
    """The agent that carries the newest attempt, if it lives, or if another host would know."""
    known = attempts(run)
    mark = read_mark(known[-1].agent) if known else None
    if mark is None or known[-1].ended.exists():
        return None
    return mark if is_elsewhere(mark) or is_alive(mark) else None


def is_being_stopped(run: RunFiles) -> bool:
    """Whether a user asked the newest attempt to save and stay stopped; it may be over by now."""
    try:
        stop = read_stop(attempts(run)[-1].stop)
    except (ValueError, TypeError, IndexError):  # damaged; or somebody removes the run just now
        return False
    return stop is not None and stop.cause == "user"


@contextmanager
def locked(run: RunFiles) -> Iterator[None]:
    """Between asking whether a run is running and saying that it is, nobody else may ask."""
    descriptor = os.open(run.root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def typed_name(run: RunFiles) -> str:
    """What a person types to mean this run: a path where the default root would not find it."""
    return run.name if run.root.parent == Path(DEFAULT_ROOT) else str(run.root)


class AlreadyCarried(Refused):
    """Somebody carries the run, or will: nothing is wrong with it, and nothing to be done."""


def refuse_if_running(run: RunFiles, *, silent: ProcessMark | None = None) -> None:
    """Raises: AlreadyCarried if an agent carries the run. `silent`: one known to be dead."""
    mark = running(run)
    if mark is None or mark == silent:
        return
    fix = f"end it with `longhaul stop {typed_name(run)}`"
    if is_elsewhere(mark):
        fix = f"end it on {mark.host}; if that machine is gone for good: resume.takeover=true"
    raise AlreadyCarried(
        f"run {run.name} is running already (attempt {attempts(run)[-1].number}, process "
        f"{mark.pid} on {mark.host}); see `longhaul status {typed_name(run)}`, {fix}"
    )


def silent_owner(run: RunFiles, *, lease_s: float, takeover: bool = False) -> ProcessMark | None:
    """The agent of the newest attempt if nothing more is to be expected of it, though `running`
    cannot know that: it is on another host and its heartbeat does not move for `lease_s`, or the
    user says so (`takeover`). Waits only for another host.
    """
    mark = running(run)
    if mark is None or takeover:
        return mark
    if not is_elsewhere(mark):
        return None
    print(
        f"run {run.name} belongs to process {mark.pid} on {mark.host}; waiting up to "
        f"{lease_s:.0f} s for a sign of life",
        file=sys.stderr,
        flush=True,
    )
    return mark if is_silent(attempts(run)[-1], lease_s) else None


def installed_versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
