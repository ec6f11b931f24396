"""Renaming, moving and cleaning run folders. Never a running one, never the newest checkpoint."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.outcome import observe, quarantined, unusual_steps
from launch.run.kept_states import has_states, left_in_memory
from launch.run.run_folder import attempts, list_runs, read_record
from launch.run.standing import refuse_if_active, standings
from launch.run.status import finished_step
from trainer.errors import Refused, RunFolderError
from trainer.records.json_file import fsync_folder, read_json
from trainer.records.run_files import RunFiles, step_of


@dataclass(frozen=True)
class Rubbish:
    """Something that can go. Units: bytes."""

    run: str
    path: Path
    size: int
    why: str


def rename(run: RunFiles, name: str) -> RunFiles:
    """Raises: Refused if the run is running, the name is taken or cannot be a name."""
    from trainer.config.sections.run import NAME_PATTERN

    refuse_if_active(run)
    if not re.fullmatch(NAME_PATTERN, name):
        raise Refused(
            f"{name!r} cannot be a run's name: letters, digits, '.', '_' and '-', at most 64, "
            "not beginning with '.' or '-'"
        )
    return _put(run, run.root.with_name(name))


def move(run: RunFiles, folder: Path) -> RunFiles:
    """Into another folder of runs, also on another file system. Raises: as rename."""
    refuse_if_active(run)
    if folder.exists() and not folder.is_dir():
        raise Refused(f"{folder} is not a folder")
    if (folder / "run.json").exists():
        raise Refused(f"{folder} is a run itself; name the folder that holds runs")
    if not folder.exists() and list_runs(folder.parent):  # a new name for it?
        raise Refused(
            f"{folder} is no folder of runs, and {folder.parent} is one: move the run there, and "
            "give it another name with longhaul runs rename"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return _put(run, folder / run.name)


def _put(run: RunFiles, place: Path) -> RunFiles:
    if os.path.lexists(place):
        raise Refused(f"{place} exists already")
    try:
        run.root.rename(place)
    except OSError as e:
        if e.errno != errno.EXDEV:
            raise RunFolderError(f"cannot move {run.root} to {place}: {e.strerror}") from e
        staging = place.with_name(f".{place.name}.incoming-{secrets.token_hex(4)}")
        try:
            shutil.copytree(run.root, staging, symlinks=True)
            staging.rename(place)
        except OSError as failed:
            shutil.rmtree(staging, ignore_errors=True)
            what = failed.strerror or "not everything could be copied"
            raise RunFolderError(f"cannot move {run.root} to {place}: {what}") from failed
        shutil.rmtree(run.root)
    fsync_folder(place.parent)
    return RunFiles(place)


def rubbish(runs: list[RunFiles], *, keep: int | None, failed: bool) -> list[Rubbish]:
    """What can go: superseded checkpoints, what dead saves left, and (`failed`) whole failed runs.

    `keep`: the newest complete checkpoints of a run that stay; None: as many as the run's own
    `checkpoint.keep_last` says. Those that its `checkpoint.keep_every` keeps for ever stay always.
    A run has failed when nothing runs, no attempt finished and none saved, not even what lies in
    quarantine, under another name or in this machine's memory.
    """
    found: list[Rubbish] = []
    for run, now in zip(runs, standings(runs), strict=True):
        if now.may_be_active:
            continue
        complete = _complete(run)
        aside = quarantined(run) or unusual_steps(run)
        saved = complete or aside or finished_step(run) or has_states(run) or run.copies.exists()
        if failed and attempts(run) and not saved:
            found.append(_item(run, run.root, "failed, and has no checkpoint"))
            continue
        own_keep, forever = _retention(run)
        stay, best = keep or own_keep or len(complete), _best_step(run, complete)
        for step, path in complete[:-stay]:
            if step != best and (not forever or step % forever):
                why = f"not among the newest {stay} of {len(complete)}"
                if own_keep and stay < own_keep:
                    why += f"; the run itself keeps {own_keep}"
                found.append(_item(run, path, why))
        found += [_item(run, path, why) for path, why in _left_over(run)]
    return found


def remove(one: Rubbish, run: RunFiles) -> None:
    """Raises: Refused if the run was started meanwhile; RunFolderError if it cannot be removed."""
    read_record(run)
    refuse_if_active(run)
    # Renamed first, so that half a deletion is never taken for a checkpoint or a run.
    going = one.path.with_name(f".{one.path.name}.going-{secrets.token_hex(4)}")
    try:
        one.path.rename(going)
        shutil.rmtree(going)
    except OSError as e:
        raise RunFolderError(f"cannot remove {one.path}: {e.strerror}") from e


def disk_bytes(folder: Path) -> int:
    """What the files below take, links not followed."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(path) / name).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def _item(run: RunFiles, path: Path, why: str) -> Rubbish:
    return Rubbish(run=run.name, path=path, size=disk_bytes(path), why=why)


def _left_over(run: RunFiles) -> Iterator[tuple[Path, str]]:
    for path in sorted(run.checkpoints.glob("*.incoming-*")):
        yield path, "left by a save that did not end"
    for path in sorted(run.checkpoints.glob("*.removing")):
        yield path, "left by a removal that did not end"
    for path in sorted(run.attempts.glob("*/torch_extensions")):
        yield path, "ops built for one attempt"
    for path in left_in_memory(run):
        on = "goes on from the disk" if _complete(run) else "begins anew: there is nothing else"
        yield path, f"states in memory; a resume {on} then"


def _complete(run: RunFiles) -> list[tuple[int, Path]]:
    """Complete checkpoints, oldest first."""
    folders = (p.parent for p in run.checkpoints.glob("step-*/manifest.json"))
    return sorted((step, p) for p in folders if (step := step_of(p.name)) is not None)


def _best_step(run: RunFiles, complete: list[tuple[int, Path]]) -> int | None:
    """The step that evaluations found the best, if they decide: it is the run's result."""
    for files in reversed(attempts(run)):
        if (done := observe(run, files.number).done) is not None and done.best_step is not None:
            return done.best_step
    if not complete:
        return None
    try:
        step = read_json(complete[-1][1] / "manifest.json")["training"].get("best_step")
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return int(step) if step is not None else None


def _retention(run: RunFiles) -> tuple[int, int]:
    """(keep_last, keep_every) of the run's newest attempt; keep_last 0: it cannot be read."""
    for path in (*(files.plan for files in reversed(attempts(run))), run.run_json):
        try:
            config: dict[str, Any] = read_json(path)["config"]
            section = config["checkpoint"]
            return int(section["keep_last"]), int(section["keep_every"])
        except (FileNotFoundError, ValueError, KeyError):
            continue
    return 0, 0
