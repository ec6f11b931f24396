"""A place for copies that looks empty, and is not the one that was used; or is full."""

from __future__ import annotations

import errno
import logging
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.copies import copies, key_of, resumed
from tests.helpers.object_model import Objects, engine, loaded, run_with, uploader
from trainer.checkpoint import uploader as uploading
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.upload_failures import note_failure
from trainer.commands.remote import look
from trainer.dist.world import Alone
from trainer.errors import CheckpointError, RunFolderError, SaveFailed
from trainer.records.copies import copied_to, note_copies
from trainer.storage.patient import Patient
from trainer.storage.remote import PlaceMissing, open_store, trouble

URL = "s3://b/run"  # of tests.helpers.object_model.uploader
LOST = "s3://b/run shows no step of this run, though step 2 was copied there: is it mounted"

# --- what a run knows of its copies ------------------------------------------------------------


def test_a_run_notes_where_its_steps_were_copied_to(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    assert copied_to(run.copies, URL) is None
    copies(run, 1, 2)
    assert copied_to(run.copies, URL) == 2
    note_copies(run.copies, "s3://other/run", 1)
    assert (copied_to(run.copies, URL), copied_to(run.copies, "s3://other/run")) == (2, 1)
    for damaged in ("[]", '{"s3://b/run": "2"}', "{"):
        run.copies.write_text(damaged)
        with pytest.raises(ValueError, match=r"copies\.json is damaged|Expecting"):
            copied_to(run.copies, URL)


def test_without_a_step_on_the_disk_nothing_begins_where_copies_should_be(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    there = copies(run, 1, 2)
    shutil.rmtree(run.checkpoints)
    assert (found := resumed(run, there)) is not None
    assert found.step == 2
    for seen in (Objects(), Objects({"run.json": there.content["run.json"]})):
        with pytest.raises(RunFolderError, match=LOST) as told:
            resumed(run, seen)
        assert told.value.exit_code == 78
        assert str(told.value).endswith(f"removed on purpose, remove {run.copies}")
        assert not seen.changes
    run.copies.unlink()
    assert resumed(run, Objects()) is None


def test_nor_where_the_settings_name_another_place_than_before_or_none(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    copies(run, 1, 2)
    shutil.rmtree(run.checkpoints)
    note_copies(run.copies, "s3://older/run", 1)
    said = "no checkpoint, but step 2 was copied to s3://b/run: go on with checkpoint.remote.url=s3://b,"
    with pytest.raises(RunFolderError, match=said) as told:
        resumed(run, Objects(), url="s3://new/run")
    assert told.value.exit_code == 78
    with pytest.raises(RunFolderError, match=said):
        CheckpointStore(run.checkpoints).load_latest(Alone(), engine(Alone()))
    run.copies.write_text("{")
    with pytest.raises(RunFolderError, match=r"copies\.json: .*; bring it back, or remove it"):
        CheckpointStore(run.checkpoints).load_latest(Alone(), engine(Alone()))
    run.copies.unlink()
    assert CheckpointStore(run.checkpoints).load_latest(Alone(), engine(Alone())) is None


def test_with_a_step_on_the_disk_the_run_goes_on_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    copies(run, 1, 2)
    with caplog.at_level(logging.WARNING):
        found = resumed(run, Objects())
    assert found is not None
    assert (found.step, found.is_copy) == (2, False)
    assert LOST in caplog.text


# --- sending -----------------------------------------------------------------------------------


def test_nothing_is_sent_to_a_place_that_has_lost_what_was_there(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)
    there = copies(run, 1, 2)
    elsewhere = Objects()
    with pytest.raises(RunFolderError, match=f"^nothing was sent: {LOST}"):
        uploader(elsewhere, run).upload(3)
    run.copies.unlink()  # as that sentence says
    ours = uploader(there, run)
    assert ours.upload(3).sent
    there.content.clear()  # the disk under it goes while the run trains
    with pytest.raises(RunFolderError, match="nothing was sent"):
        ours.upload(2)
    assert (elsewhere.content, there.content) == ({}, {})
    run.copies.unlink()
    assert uploader(elsewhere, run).upload(3).sent


def test_a_place_that_lost_its_mark_alone_is_the_same_and_is_marked_again(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    there = copies(run, 1)
    mark = there.content.pop("run.json")
    assert uploader(there, run).upload(2).sent
    assert there.content["run.json"] == mark


def test_a_rank_that_does_not_see_the_mark_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, away = run_with(tmp_path / "run", 1, ranks=2), Objects()
    monkeypatch.setattr(uploading, "_MARK_S", 0.0)
    with pytest.raises(SaveFailed, match=f"not seen on {socket.gethostname()}; nothing was sent"):
        uploader(away, run, rank=1, ranks=2).upload(1)
    assert away.content == {}


def test_a_rank_waits_for_the_mark_until_rank_0_has_failed(tmp_path: Path) -> None:
    run, there = run_with(tmp_path / "run", 1, ranks=2), Objects()

    def mark(seconds: float) -> None:
        uploader(there, run, ranks=2).introduce()

    assert uploader(there, run, rank=1, ranks=2, sleep=mark).upload(1).sent

    def fail(seconds: float) -> None:
        note_failure(run.attempt(1), 1, rank=0)

    with pytest.raises(SaveFailed, match="rank 0 could not send its file"):
        uploader(Objects(), run, rank=1, ranks=2, sleep=fail).upload(1)


# --- a folder that is not there ------------------------------------------------------------------


def test_a_folder_on_the_way_to_a_place_is_never_made(tmp_path: Path) -> None:
    store = open_store(f"file://{tmp_path}/mnt/copies/run")
    said = f"the folder {tmp_path}/mnt/copies is not there: mount it, or make it"
    block = np.ones(3, dtype=np.uint8)
    for act in (
        lambda: store.size(Path("a")),
        lambda: store.names(Path("a")),
        lambda: store.sizes(Path("a")),
        lambda: store.read(Path("a"), 0, block),
        lambda: store.put(Path("a"), lambda: [block], size=3),
        lambda: store.remove([Path("a")]),
    ):
        with pytest.raises(PlaceMissing, match=said):
            act()
    assert list(tmp_path.iterdir()) == []
    assert said in look(f"file://{tmp_path}/mnt/copies/run", {}, delays_s=())["problem"]
    with pytest.raises(CheckpointError, match=f"cannot be told: {said}"):
        loaded(store, tmp_path / "nowhere")
    (tmp_path / "mnt/copies").mkdir(parents=True)
    store.put(Path("a"), lambda: [block], size=3)
    assert store.size(Path("a")) == 3


# --- a place that is full ------------------------------------------------------------------------


def test_what_is_in_the_way_is_told_with_the_first_failure_and_tried_again() -> None:
    store, told = Objects(), list[str]()
    tries = iter([OSError(errno.ENOSPC, "No space left on device")] * 2)

    def before(verb: str, path: Path) -> None:
        if (problem := next(tries, None)) is not None:
            raise problem

    store.before = before
    data = np.ones(3, dtype=np.uint8)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        assert told == ["file:///mnt/x is full (No space left on device)"]
        slept.append(seconds)

    patient = Patient(
        store,
        delays_s=(1.0, 2.0),
        sleep=sleep,
        tell=lambda e: told.append(trouble("file:///mnt/x", e)),
    )
    patient.put(Path("a"), lambda: [data], size=3)
    assert (slept, len(told), store.size(Path("a"))) == ([1.0, 2.0], 1, 3)


# --- a folder in an object's place ---------------------------------------------------------------


class Folders(Objects):
    """Objects with this name are folders."""

    def __init__(self, content: dict[str, bytes], name: str) -> None:
        super().__init__(content)
        self._name = name

    def read(self, path: Path, offset: int, out: Any) -> int:
        self._refuse(path)
        return super().read(path, offset, out)

    def remove(self, paths: Any) -> None:
        for path in (listed := list(paths)):
            self._refuse(path)
        super().remove(listed)

    def _refuse(self, path: Path) -> None:
        if path.as_posix() == self._name:
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))


def test_a_copy_whose_manifest_is_a_folder_is_damaged_and_not_out_of_reach(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path / "run", 1, 2, 3)
    store = copies(run, 1, 2)
    spoilt = Folders(store.content, key_of(store, 2, "manifest.json"))
    with caplog.at_level(logging.WARNING):
        found = loaded(spoilt, tmp_path / "nowhere")
    assert found is not None
    assert found.step == 1
    assert "the copy of step 2 in s3://b/run is damaged" in caplog.text
    assert "manifest.json: Is a directory" in caplog.text
    # Retention cannot remove it, and says so; the others go all the same.
    done = uploader(spoilt, run, keep_last=1).upload(3)
    assert done.problem == "step 3 is uploaded, but tidying up after it failed: Is a directory"
    assert [key for key in store.content if "step-00000001." in key] == []


def test_a_list_of_steps_given_up_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    store = copies(run_with(tmp_path / "run", 1), 1)
    store.content["withdrawn.json"] = b"[]"
    with pytest.raises(
        CheckpointError, match=r"withdrawn\.json of the remote copies cannot be read"
    ):
        loaded(Folders(store.content, "withdrawn.json"), tmp_path / "nowhere")
