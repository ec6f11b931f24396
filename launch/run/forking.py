"""A new run that goes on from where another one is: what population-based training does."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch.outcome import newest_checkpoint
from launch.run.run_folder import create, read_record
from trainer.errors import Refused
from trainer.records.json_file import fsync_folder
from trainer.records.manifest import MANIFEST_NAME, decode, digest_of, encode
from trainer.records.run_files import RunFiles, step_name

_BEFORE_THE_FIRST = 0  # as in what is imported: no attempt of the run wrote this


def fork(parent: RunFiles, *, config: Mapping[str, Any], frozen_hash: str) -> RunFiles:
    """The run that `config` names, with the newest checkpoint of `parent`, which nobody carries.

    The files of the checkpoint are links to the same bytes where the disk can, for nobody changes
    them; only its manifest is another one, for it says whose it is. The folder is there with all
    of it, or not at all.

    Raises: Refused if the other run saved nothing, or differs in what no run may change;
    RunFolderError; DamagedCheckpoint if its manifest is.
    """
    record, step = read_record(parent), newest_checkpoint(parent)
    name = config["run"]["name"]
    if record.frozen_hash != frozen_hash:
        what = "they differ in settings that no attempt of a run may change"
        raise Refused(f"{name} cannot go on from {parent.name}: {what}")
    if not step:
        raise Refused(f"{name} cannot go on from {parent.name}: that saved nothing")
    run_id = secrets.token_hex(8)
    whose = f"{parent.name} ({record.run_id})"

    def fill(run: RunFiles) -> None:
        for path in [one for one in (parent.frozen,) if one.exists()]:
            shutil.copy2(path, run.root / path.name)
        _take_step(parent, run, step, run_id=run_id, whose=whose)

    root = Path(config["run"]["root"])
    return create(root, config=dict(config), frozen_hash=frozen_hash, run_id=run_id, fill=fill)


def _take_step(parent: RunFiles, run: RunFiles, step: int, *, run_id: str, whose: str) -> None:
    source, folder = (one.checkpoints / step_name(step) for one in (parent, run))
    folder.mkdir(mode=0o700, parents=True)
    for path in sorted(source.iterdir()):
        if path.name != MANIFEST_NAME:
            _link(path, folder / path.name)
    manifest = decode((source / MANIFEST_NAME).read_bytes())
    origin = {**manifest.origin, "forked_from": whose}
    content = encode(
        replace(
            manifest,
            run_hash=run_id,
            attempt=_BEFORE_THE_FIRST,
            parent_step=None,
            origin=origin,
        )
    )
    (folder / MANIFEST_NAME).write_bytes(content)
    fsync_folder(folder)
    pointer = {"step": step, "sha256": digest_of(content)}
    (run.checkpoints / "latest.json").write_text(json.dumps(pointer) + "\n", encoding="utf-8")
    fsync_folder(run.checkpoints)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
