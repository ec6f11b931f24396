"""Where a run is started: its copies are looked for, and a place that shows none is told of."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.run.copies import adopt, look, restore
from tests.helpers.configs import config
from tests.helpers.object_model import run_with, uploader
from trainer.checkpoint.remote_steps import all_folders
from trainer.config.schema import Config
from trainer.errors import Refused, RunFolderError
from trainer.records.copies import copied_to
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.storage.remote import open_store

RECORD = {
    "format": 1,
    "run_id": "0123456789abcdef",
    "name": "r",
    "frozen_hash": "f" * 64,
    "created": 0.0,
    "config": {},
    "versions": {},
}


def asked(folder: Path, *overrides: str) -> Config:
    (folder / "mnt").mkdir(exist_ok=True)
    return config(
        "run.name=r",
        f"run.root={folder / 'runs'}",
        f"checkpoint.remote.url=file://{folder}/mnt",
        *overrides,
    )


def copied(folder: Path) -> tuple[RunFiles, str]:
    """A run with a step, and its copy."""
    run, url = run_with(folder / "before/r", 1), f"file://{folder}/mnt/r"
    write_json(run.run_json, RECORD)
    (folder / "mnt").mkdir(exist_ok=True)
    uploader(open_store(url), run).upload(1)
    return run, url


def test_a_machine_with_nothing_and_an_empty_place_says_that_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adopt(asked(tmp_path), frozen_hash="f" * 64)
    said = capsys.readouterr().err
    assert f"no copies of a run r in file://{tmp_path}/mnt/r: it begins at step 0" in said
    assert "resume=must never begins" in said
    with pytest.raises(Refused, match=r"resume=must, .* holds no copies of it") as told:
        adopt(asked(tmp_path, "resume=must"), frozen_hash="f" * 64)
    assert told.value.exit_code == 2
    settings = asked(tmp_path)
    (tmp_path / "mnt").rmdir()
    with pytest.raises(Refused, match=r"cannot be told: the folder .*/mnt is not there: mount it"):
        adopt(settings, frozen_hash="f" * 64)


def test_a_run_whose_place_is_empty_now_is_not_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = copied(tmp_path)
    adopt(asked(tmp_path), frozen_hash="f" * 64)
    run = RunFiles(tmp_path / "runs/r")
    assert f"goes on from its copies in {url} (the newest is of step 1)" in capsys.readouterr().err
    assert copied_to(run.copies, url) == 1
    (tmp_path / "mnt").rename(tmp_path / "unmounted")
    with pytest.raises(RunFolderError, match="step 1 was copied there: is it mounted") as told:
        adopt(asked(tmp_path), frozen_hash="f" * 64)
    assert told.value.exit_code == 78
    assert str(told.value).endswith("without copies: checkpoint.remote.url=null")
    assert list((tmp_path / "mnt").iterdir()) == []


def test_a_run_without_a_whole_step_there_is_not_said_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, url = copied(tmp_path)
    store = open_store(url)
    store.remove([folder.manifest for folder in all_folders(store)])
    with pytest.raises(Refused, match="resume=must, but no step of the run r is whole"):
        adopt(asked(tmp_path, "resume=must"), frozen_hash="f" * 64)
    found = look(url)
    run = restore(found, tmp_path / "other", "r")
    assert (found.step, run.copies.exists()) == (0, False)
