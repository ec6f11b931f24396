"""A run's copies in another place, as the launcher sees them: whose they are, and a folder of them.

What is asked is asked in a child process: no store's library is imported here.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.compute import compute
from launch.run.run_folder import existing, read_record
from trainer.config.schema import Config
from trainer.errors import ConfigError, Exit, Problem, Refused, RunFolderError
from trainer.records.copies import copied_to, emptied, note_copies
from trainer.records.json_file import fsync_folder, read_json, write_json
from trainer.records.run_files import RunFiles

_URL = "checkpoint.remote.url"


@dataclass(frozen=True)
class Copies:
    """What lies under `url`. `run` None: nothing of a run. `problem`: it cannot be reached.

    `step`: the newest one that is there whole; 0: none.
    """

    url: str
    run: dict[str, Any] | None
    attempt: int
    plan: dict[str, Any] | None
    withdrawn: list[Any] | None
    step: int
    problem: str


def look(url: str, options: dict[str, Any] | None = None) -> Copies:
    """Raises: Refused if the URL cannot be used here; the child has said why."""
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
        result = Path(folder) / "result.json"
        words = [url, "--options", json.dumps(options or {}), "--result", str(result)]
        if (code := compute("trainer.commands.remote", words)) != Exit.DONE:
            raise Refused(f"{_URL}={url} cannot be used here (exit code {code}); see above")
        return Copies(url=url, **read_json(result))


def adopt(config: Config, *, frozen_hash: str) -> None:
    """Before a start: a run that is not on this machine, but has copies, gets its folder back.

    Raises: Refused, ConfigError if the copies are another run's, or nobody can tell; RunFolderError
    if the run has copies in this place, and they are not to be seen.
    """
    section, name = config.checkpoint.remote, config.run.name
    if section.url is None:
        return
    run = existing(Path(config.run.root), name)
    copies = look(f"{section.url.rstrip('/')}/{name}", section.options)
    if copies.problem:
        if run is None:
            raise Refused(
                f"whether {copies.url} holds copies of a run {name} cannot be told: "
                f"{copies.problem}; start again when it can be reached, or without it: {_URL}=null"
            )
        _say(f"{copies.url} cannot be reached: {copies.problem}")
    elif copies.run is None and not copies.step:
        _nothing_there(config, run, copies)
    elif copies.run is not None and run is not None:
        if read_record(run).run_id != copies.run.get("run_id"):
            raise _another(copies, name, f"{run.root} is another run than the one with copies")
    elif copies.run is not None:
        _bring_back(config, copies, frozen_hash=frozen_hash)


def _bring_back(config: Config, copies: Copies, *, frozen_hash: str) -> None:
    """Raises: Refused, ConfigError if these are not the copies of what is asked."""
    name, record = config.run.name, copies.run or {}
    if config.resume.mode == "never":
        raise Refused(f"resume=never, but {copies.url} holds the run {name}; another run.name")
    if record.get("frozen_hash") != frozen_hash:
        raise _another(copies, name, "these are not the settings of the run with copies")
    if not copies.step and config.resume.mode == "must":
        raise Refused(f"resume=must, but no step of the run {name} is whole in {copies.url}")
    found = restore(copies, Path(config.run.root), name)
    what = f"goes on from its copies in {copies.url} (the newest is of step {copies.step})"
    if not copies.step:
        what = f"begins at step 0, for no step of it is whole in {copies.url}"
    _say(f"{found.root} is not on this machine; it {what}")


def _nothing_there(config: Config, run: RunFiles | None, copies: Copies) -> None:
    """The place answers, and holds nothing of this run: it may be new, or another than was meant.

    Raises: RunFolderError, Refused if it cannot be new.
    """
    name, mode = config.run.name, config.resume.mode
    if run is None and mode == "must":
        raise Refused(
            f"resume=must, but there is no run {Path(config.run.root) / name}, and {copies.url} "
            "holds no copies of it; another URL, or start it with resume=auto"
        )
    if run is None and mode != "never":
        _say(
            f"no copies of a run {name} in {copies.url}: it begins at step 0 (if it should go on, "
            "look whether that place is mounted and the account is the same; resume=must never "
            "begins)"
        )
    known = None if run is None else _known(run, copies.url)
    if run is None or known is None:
        return
    said = emptied(run.copies, copies.url, known)
    if config.launch.kind != "local":  # ranks look for themselves, where they are
        _say(f"seen from here, {said}")
        return
    raise RunFolderError(f"{said}; without copies: {_URL}=null")


def _known(run: RunFiles, url: str) -> int | None:
    try:
        return copied_to(run.copies, url)
    except (OSError, ValueError) as e:
        raise RunFolderError(
            f"{run.copies} cannot be read: {e}; bring it back, or remove it"
        ) from e


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def restore(copies: Copies, root: Path, name: str) -> RunFiles:
    """A run folder without checkpoints: its ranks load those from the copies.

    Raises: Refused if there are no copies, or something has the name; RunFolderError.
    """
    if copies.problem:
        raise Refused(f"{copies.url} cannot be reached: {copies.problem}")
    if copies.run is None:
        raise Refused(
            f"{copies.url}: no copies of a run here; give the URL that it was started with"
        )
    if existing(root, name) is not None:
        raise Refused(f"{root / name} exists already; longhaul resume {name} goes on with it")
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{name}.incoming-", dir=root))  # mode 0700
    run, files = RunFiles(root / name), RunFiles(staging)
    try:
        write_json(files.run_json, copies.run)
        if copies.plan is not None:
            attempt = files.attempt(copies.attempt)
            attempt.root.mkdir(mode=0o700, parents=True)
            write_json(attempt.plan, copies.plan)
        if copies.withdrawn is not None:
            write_json(files.withdrawn, copies.withdrawn)
        if copies.step:
            note_copies(files.copies, copies.url, copies.step)
        read_record(files)
        staging.rename(run.root)
    except (OSError, RunFolderError) as e:
        shutil.rmtree(staging, ignore_errors=True)
        raise RunFolderError(f"cannot restore {run.root} from {copies.url}: {e}") from e
    fsync_folder(root)
    return run


def _another(copies: Copies, name: str, what: str) -> ConfigError:
    fix = f"another run.name, or another {_URL}; {copies.url} stays as it is"
    return ConfigError([Problem("run.name", f"{name}: {what} in {copies.url}", fix)])
