"""What is no checkpoint, in the place of one: a file, a link, another spelling, nothing at all."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.outcome import complete_checkpoints, unusual_steps
from tests.helpers.slice_engine import SliceEngine
from trainer.checkpoint.store import CheckpointStore
from trainer.commands.checkpoint import main
from trainer.dist.world import Alone
from trainer.errors import RunFolderError
from trainer.records.manifest import MANIFEST_NAME
from trainer.records.run_files import RunFiles, step_of

RANK = "rank-00000.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoints of a run: steps 6 and 8."""
    save(tmp_path / "run/checkpoints", 6, 8)
    return tmp_path / "run/checkpoints"


def save(folder: Path, *steps: int) -> None:
    store = CheckpointStore(folder, chunk_bytes=256)
    for step in steps:
        ours: Any = SliceEngine("zero3", 0, 1).fill(step)
        report = store.save(Alone(), ours, step=step, training={"step": step})
        assert report.succeeded, report.problem
        assert not report.problem


def load(folder: Path) -> int | None:
    ours: Any = SliceEngine("zero3", 0, 1)
    found = CheckpointStore(folder, attempt=2).load_latest(Alone(), ours)
    assert found is None or not ours.differs(found["step"])
    return None if found is None else int(found["step"])


def _file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("not a folder")


def _link_to_nothing(path: Path) -> None:
    shutil.rmtree(path)
    path.symlink_to("/nowhere")


def _link_elsewhere(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("damage", [_file, _link_to_nothing, _link_elsewhere])
def test_what_is_no_folder_is_set_aside_with_its_note_beside_it(
    folder: Path, damage: Callable[[Path], None]
) -> None:
    step = folder / "step-00000008"
    damage(step)
    assert load(folder) == 6
    aside = folder / "quarantine/step-00000008.1"
    assert sorted(p.name for p in aside.iterdir()) == ["step-00000008", "why.txt"]
    assert MANIFEST_NAME in (aside / "why.txt").read_text()
    elsewhere = folder.parent / "elsewhere"
    if elsewhere.exists():  # nothing is written to where a link leads
        assert sorted(p.name for p in elsewhere.iterdir()) == [MANIFEST_NAME, RANK]


def test_a_link_or_a_socket_in_the_place_of_a_file_is_damage(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder / "step-00000008")  # a socket's path is short
    Path(RANK).unlink()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(RANK)
        assert load(folder) == 6
    save(folder, 8)
    path = folder / "step-00000008" / RANK
    path.unlink()
    path.symlink_to("/nowhere")
    assert load(folder) == 6
    assert "a link, where a file" in (folder / "quarantine/step-00000008.2/why.txt").read_text()


@pytest.mark.parametrize("name", ["step-8", "step-000000008", "step-0000000\u0668"])
def test_another_spelling_of_a_step_is_none_and_is_never_taken_for_one(
    folder: Path, name: str
) -> None:
    step = folder / "step-00000008"
    step.rename(folder / name)
    run = RunFiles(folder.parent)
    assert step_of(name) is None
    assert load(folder) == 6
    assert (complete_checkpoints(run), unusual_steps(run)) == ([6], [name])
    save(folder, 10, 12)  # retention is not misled
    assert complete_checkpoints(run) == [10, 12]
    assert (folder / name / MANIFEST_NAME).exists()


@pytest.mark.parametrize("left", ["step-00000008.bak", "latest.json"])
def test_a_run_that_has_had_checkpoints_never_begins_anew_by_itself(
    folder: Path, left: str
) -> None:
    shutil.rmtree(folder / "step-00000006")
    if left == "latest.json":
        shutil.rmtree(folder / "step-00000008")
    else:
        (folder / "step-00000008").rename(folder / left)
    with pytest.raises(RunFolderError, match=f"no checkpoint is there, but {left} tells") as told:
        load(folder)
    assert told.value.exit_code == 78
    assert "bring back a whole one as" in str(told.value)


def test_a_folder_in_which_nothing_was_ever_published_begins(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    interrupted = folder / "step-00000002.incoming-0001"
    interrupted.mkdir()
    (interrupted / MANIFEST_NAME).touch()
    assert load(folder) is None


@pytest.mark.parametrize("name", ["", "quarantine"])
@pytest.mark.parametrize("is_link", [True, False])
def test_no_folder_where_checkpoints_belong_is_said(
    folder: Path, name: str, is_link: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / name
    if path.exists():
        shutil.rmtree(path)
    if is_link:
        path.symlink_to("/nowhere")
    else:
        path.write_text("")
    with pytest.raises(RunFolderError, match="is a file, or a link that leads nowhere") as told:
        load(folder)
    assert str(path) in str(told.value)
    assert main(["list", str(folder.parent)]) == (78 if name else 2)
    assert f"{path if name else folder.parent}" in capsys.readouterr().err


def test_a_save_while_the_folder_is_gone_fails_and_the_next_one_works(folder: Path) -> None:
    store, ours = CheckpointStore(folder), SliceEngine("zero3", 0, 1)
    folder.rename(folder.parent / "away")
    folder.symlink_to("/nowhere")
    engine: Any = ours.fill(10)
    assert not store.save(Alone(), engine, step=10, training={"step": 10}).succeeded
    folder.unlink()
    (folder.parent / "away").rename(folder)
    assert store.save(Alone(), engine, step=10, training={"step": 10}).succeeded
    assert load(folder) == 10


@pytest.mark.parametrize("name", ["step-00000002.removing", "step-00000002.incoming-0001"])
def test_leftovers_that_are_no_folders_are_no_reason_not_to_save(folder: Path, name: str) -> None:
    other = folder.parent / "other"
    other.mkdir()
    (other / "keep").touch()
    for is_link in (True, False):
        if is_link:
            (folder / name).symlink_to(other)
        else:
            (folder / name).write_text("")
        save(folder, 10)
        assert not (folder / name).is_symlink()
        assert not (folder / name).exists()
        shutil.rmtree(folder / "step-00000010")
    assert (other / "keep").exists()


def test_list_refuses_a_step_that_is_not_there(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", str(folder.parent), "7"]) == 2
    assert "no checkpoint of step 7; there are: 6, 8" in capsys.readouterr().err


def test_a_later_version_is_not_called_damage(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "step-00000008" / MANIFEST_NAME
    content = path.read_bytes()
    body = content[: content.rfind(b'"sha256"')].replace(b'"format":1', b'"format":2')
    path.write_bytes(body + b'"sha256":"' + hashlib.sha256(body).hexdigest().encode() + b'"}\n')
    for verb in ("list", "verify"):
        assert main([verb, str(folder.parent)]) == 78
        out = capsys.readouterr().out
        assert "OF A LATER VERSION" in out
        assert "DAMAGED" not in out
        assert "format 2 is newer" in out


def test_diff_names_the_step_whose_manifest_is_damaged(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "step-00000008" / MANIFEST_NAME).unlink()
    for steps in (["6", "8"], ["6"]):
        assert main(["diff", str(folder.parent), *steps]) == 78
        assert f"{folder}: step 8: {MANIFEST_NAME}" in capsys.readouterr().err


def test_diff_of_copies_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "s3://bucket/a", "s3://bucket/b"]) == 2
    assert "longhaul runs fetch" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["latest.json", ".latest.json.partial"])
def test_a_folder_in_the_pointers_place_is_set_aside_and_retention_goes_on(
    folder: Path, name: str
) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    (folder / name / "mine").touch()
    save(folder, 10)
    assert complete_checkpoints(RunFiles(folder.parent)) == [8, 10]
    assert json.loads((folder / "latest.json").read_text())["step"] == 10
    assert (folder / "quarantine" / f"{name}.1/mine").exists()
    assert load(folder) == 10
