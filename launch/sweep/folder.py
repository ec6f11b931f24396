"""Where everything is in a sweep's folder, and whether it is the sweep that is asked for.

sweep.json            what is searched and how; written once
command.json          as it was typed last; trials, concurrency and budget may have changed since
trials.jsonl          what happened to its trials; the truth
trials/NAME-0007/     a run folder like any other
settings/0007.json    the settings that it was started with; 0007.process: by whom
logs/0007.log         what its start printed
stop                  somebody asked the sweep to stop
conf/experiment/      the best as a recipe
sweep.html            figures and the table, written when a sweeper ends
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.run.liveness import own_mark, read_mark, write_mark
from trainer.errors import Refused, RunFolderError
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles

FORMAT = 1


@dataclass(frozen=True)
class SweepFiles:
    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def record(self) -> Path:
        return self.root / "sweep.json"

    @property
    def command(self) -> Path:
        return self.root / "command.json"

    @property
    def trials(self) -> Path:
        return self.root / "trials.jsonl"

    @property
    def runs(self) -> Path:
        return self.root / "trials"

    @property
    def page(self) -> Path:
        return self.root / "sweep.html"

    @property
    def stop(self) -> Path:
        return self.root / "stop"

    @property
    def sweeper(self) -> Path:
        """Which process carries the sweep."""
        return self.root / "sweeper.json"

    def run_name(self, number: int) -> str:
        return f"{self.name}-{number:04d}"

    def run(self, number: int) -> RunFiles:
        return RunFiles(self.runs / self.run_name(number))

    def settings(self, number: int) -> Path:
        return self.root / "settings" / f"{number:04d}.json"

    def starter(self, number: int) -> Path:
        return starter_of(self.settings(number))

    def log(self, number: int) -> Path:
        path = self.root / "logs" / f"{number:04d}.log"
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return path


def starter_of(settings: Path) -> Path:
    return settings.with_suffix(".process")


def find_sweep(name: str, *, root: Path) -> SweepFiles | None:
    """The sweep with that name under `root`, or at that path."""
    for folder in (root / name, Path(name)):
        if (folder / "sweep.json").is_file():
            return SweepFiles(folder)
    return None


def read_sweep(files: SweepFiles) -> dict[str, Any]:
    """Raises: RunFolderError if it is damaged."""
    try:
        value: dict[str, Any] = read_json(files.record)
        if value["format"] == FORMAT:
            return value
        said = f"has format {value['format']}, this version reads {FORMAT}"
    except (OSError, ValueError, KeyError, TypeError) as e:
        said = f"is damaged: {e}"
    raise RunFolderError(f"{files.record} {said}")


def refuse_another(files: SweepFiles, identity: Mapping[str, Any]) -> None:
    """Raises: Refused if the folder holds something else than this sweep."""
    if (files.root / "run.json").exists() or (
        files.root.exists() and not files.record.exists() and any(files.root.iterdir())
    ):
        what = "a run" if (files.root / "run.json").exists() else "something else"
        raise Refused(f"{files.root} is {what}, not a sweep; choose another sweep.name")
    if not files.record.exists():
        return
    stored = read_sweep(files)["identity"]
    differing = _differing(stored, dict(identity))
    if differing:
        more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
        raise Refused(
            f"{files.root} is another sweep: {differing[0]} differs{more}; go on with it by the "
            f"command that began it, or choose another sweep.name"
        )


def write_sweep(files: SweepFiles, identity: Mapping[str, Any], command: Mapping[str, Any]) -> None:
    files.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.runs.mkdir(mode=0o700, exist_ok=True)
    if not files.record.exists():
        write_json(files.record, {"format": FORMAT, "identity": dict(identity)})
    write_json(files.command, dict(command))


@contextmanager
def carried(files: SweepFiles) -> Iterator[None]:
    """One sweeper at a time. Raises: Refused if another one is at it."""
    descriptor = os.open(files.root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        mark = read_mark(files.sweeper)
        who = f" (process {mark.pid} on {mark.host})" if mark else ""
        raise Refused(
            f"sweep {files.name} is running already{who}; see `longhaul status {files.name}`"
        ) from None
    try:
        write_mark(files.sweeper, own_mark())
        files.stop.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)


def is_carried(files: SweepFiles) -> bool:
    """Whether a sweeper is at it, on this machine or one that shares the folder and its locks."""
    descriptor = os.open(files.root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _differing(stored: Any, asked: Any, prefix: str = "") -> list[str]:
    """Dotted names whose values are not the same."""
    if not isinstance(stored, dict) or not isinstance(asked, dict):
        return [] if stored == asked else [prefix]
    found: list[str] = []
    for key in dict.fromkeys((*stored, *asked)):
        inner = f"{prefix}.{key}" if prefix else str(key)
        if (key in stored) != (key in asked):
            found.append(inner)
        else:
            found += _differing(stored.get(key), asked.get(key), inner)
    return found
