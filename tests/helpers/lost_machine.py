"""A run whose machine is lost, with copies under a URL: the same command goes on somewhere else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.data import tiny_text_corpus
from tests.helpers.tiny_run import TINY
from trainer.checkpoint.ranges import open_step
from trainer.checkpoint.remote_steps import all_folders
from trainer.checkpoint.verify import differences
from trainer.records.json_file import read_json
from trainer.records.lineage import read_lineage
from trainer.records.metrics import read_metrics
from trainer.records.run_files import RunFiles
from trainer.storage.local import LocalStorage
from trainer.storage.remote import open_store

REPOSITORY = Path(__file__).parents[2]
KEY, SECRET = "LONGHAULSENTINELID", "longhaul-sentinel-never-to-be-written"


@dataclass(frozen=True)
class Told:
    """What the two commands printed, and the run as the second one left it."""

    first: str
    second: str
    run: RunFiles
    uploads: list[dict[str, Any]]  # lines of the first run's metrics


def lose_the_machine(
    folder: Path,
    url: str,
    *,
    options: Mapping[str, Any],
    env: Mapping[str, str],
    ranks: Sequence[str] = ("engine=zero1", "resources.ranks_per_node=2"),
) -> Told:
    """Train to step 6, lose the folder and the copy of step 6, type the same command again.

    Everything that must hold anywhere is asserted here.
    """
    corpus = tiny_text_corpus(folder / "corpus", documents=60)
    words = [
        *TINY,
        f"data.sources.files.paths=[{corpus}]",
        f"data.store_root={folder / 'stores'}",
        *ranks,
        "steps.save_every=2",
        f"checkpoint.remote.url={url}",
        "checkpoint.keep_last=9",  # else step 2 may be gone before its upload begins
        "checkpoint.remote.keep_last=9",
        f"checkpoint.remote.options={_hydra(options)}",
        "run.name=lost",
    ]
    first = _command(folder, env, "train", *words)
    run = RunFiles(folder / "runs/lost")
    record, uploads = read_json(run.run_json), read_metrics(run.metrics, "upload")
    last = uploads[-1]
    assert (last["step"], last["succeeded"], last["problem"]) == (6, True, ""), uploads
    assert "uploaded step 6" in first
    _nowhere(folder, SECRET)
    kept = folder / "kept"
    shutil.copytree(run.checkpoints, kept)
    shutil.rmtree(run.root)
    store = open_store(f"{url}/lost", options)
    *_, before, newest = all_folders(store)  # a step that came too fast has no copy
    assert newest.step == 6
    store.remove([newest.manifest])
    second = _command(folder, env, "train", *words)
    assert "is not on this machine; it goes on from its copies" in second
    said = second + _logs(run)
    assert f"step {before.step} was loaded from its copy" in said, said
    assert read_json(run.run_json) == record
    assert [one.step for one in read_lineage(run.lineage)] == [before.step]
    disk = LocalStorage()
    a, b = open_step(disk, kept, 6), open_step(disk, run.checkpoints, 6)
    assert [d for d in differences(a, b) if d.differing] == []
    assert a.manifest.training["cursor"] == b.manifest.training["cursor"]
    _nowhere(folder, SECRET)
    return Told(first, second, run, uploads)


def command(folder: Path, env: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """`longhaul ...` with these credentials; stdout and stderr as one text."""
    more = {
        "PYTHONPATH": str(REPOSITORY),
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        **env,
    }
    return subprocess.run(
        [sys.executable, "-m", "launch", *words],
        cwd=folder,
        env=dict(os.environ) | more,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )


def _command(folder: Path, env: Mapping[str, str], *words: str) -> str:
    done = command(folder, env, *words)
    assert done.returncode == 0, done.stdout
    assert SECRET not in done.stdout
    return done.stdout


def _nowhere(folder: Path, text: str) -> None:
    holding = [p for p in folder.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]
    assert holding == []


def _logs(run: RunFiles) -> str:
    return "".join(p.read_text() for p in run.attempts.glob("*/rank-*.log"))


def _hydra(options: Mapping[str, Any]) -> str:
    return "{" + ",".join(f"{key}:{json.dumps(value)}" for key, value in options.items()) + "}"
