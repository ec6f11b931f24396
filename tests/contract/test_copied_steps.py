"""Copies of steps in another place: sent once, found again, never believed before they are read."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from tests.helpers.copies import copies, key_of, resumed, spoil
from tests.helpers.object_model import Objects, loaded, run_with, upload, uploader
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.remote_steps import all_folders
from trainer.errors import CheckpointError, DamagedCheckpoint, RunFolderError, SaveFailed
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal
from trainer.storage.local import LocalStorage
from trainer.storage.remote import Blocks

# --- sending ---------------------------------------------------------------------------------


def test_what_is_there_is_not_sent_again(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, ranks=2)
    store = Objects()
    with pytest.raises(SaveFailed, match="rank-00001"):
        uploader(store, run, rank=0, ranks=2).upload(1)  # the other rank never came
    assert uploader(store, run, rank=1, ranks=2).upload(1).sent > 0
    sent = len(store.changes)
    assert uploader(store, run, rank=0, ranks=2).upload(1).sent == 0
    assert [Path(name).name for _, name in store.changes[sent:]] == ["plan.json", "manifest.json"]
    assert loaded(store, tmp_path / "nowhere") is not None


def test_fewer_ranks_than_wrote_a_step_send_all_of_it(tmp_path: Path) -> None:
    store = copies(run_with(tmp_path / "run", 1, ranks=5), 1, ranks=2)
    found = loaded(store, tmp_path / "nowhere")
    assert found is not None
    assert found.step == 1


def test_a_file_that_is_damaged_on_the_disk_is_not_sent(tmp_path: Path) -> None:
    run, store = run_with(tmp_path / "run", 1), Objects()
    path = run.checkpoints / "step-00000001/rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedCheckpoint, match="chunk"):
        uploader(store, run).upload(1)
    assert not [name for _, name in store.changes if "step-" in name]


def test_retention_on_the_disk_may_come_in_between(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1)
    folder = run.checkpoints / "step-00000001"

    class Behind(Objects):
        def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
            if path.name.startswith("rank-"):
                shutil.rmtree(folder)
            super().put(path, blocks, size=size)

    store = Behind()
    assert uploader(store, run).upload(1).sent
    assert loaded(store, tmp_path / "nowhere") is not None
    with pytest.raises(SaveFailed, match="the disk has let go of it"):
        uploader(store, run).upload(1)


def test_copies_of_another_run_with_this_name_stay_untouched(tmp_path: Path) -> None:
    store = copies(run_with(tmp_path / "run", 1), 1)
    other = run_with(tmp_path / "other", 1)
    write_json(other.run_json, {"format": 1, "run_id": "f" * 16})
    before = dict(store.content)
    with pytest.raises(RunFolderError, match="another run with this name"):
        uploader(store, other).upload(1)
    assert store.content == before


def test_an_older_attempt_on_another_machine_commits_no_more(tmp_path: Path) -> None:
    run, other = run_with(tmp_path / "run", 1), run_with(tmp_path / "other", 1, attempt=2)
    store = copies(other, 1, attempt=2)
    with pytest.raises(SaveFailed, match="attempt 2 of this run"):
        uploader(store, run, attempt=1).upload(1)


def test_the_newest_copies_are_kept(tmp_path: Path) -> None:
    store = copies(run_with(tmp_path / "run", 1, 2, 3, 4), 1, 2, 3, 4, keep_last=2)
    assert [folder.step for folder in all_folders(store)] == [3, 4]


# --- going on --------------------------------------------------------------------------------


def test_the_newest_step_wins_wherever_it_is(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    store = copies(run, 1)
    found = resumed(run, store)
    assert found is not None
    assert (found.step, found.is_copy, found.newest_copy) == (2, False, 1)
    found = loaded(store, tmp_path / "nowhere")
    assert found is not None
    assert (found.step, found.is_copy) == (1, True)
    assert resumed(RunFiles(tmp_path / "new"), Objects()) is None


def test_a_damaged_step_of_the_disk_is_read_from_its_copy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    store = copies(run, 1, 2)
    path = run.checkpoints / "step-00000002/rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    found = resumed(run, store)
    assert found is not None
    assert (found.step, found.is_copy) == (2, True)
    assert StepFolders(LocalStorage(), run.checkpoints).quarantined() == ["step-00000002.1"]
    with caplog.at_level(logging.WARNING):
        spoil(store, 2)
        found = resumed(run, store)
    assert found is not None
    assert (found.step, found.is_copy) == (1, False)
    assert f"step 1 was loaded from {run.checkpoints}" in caplog.text


def test_a_damaged_copy_is_passed_over_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = copies(run_with(tmp_path / "run", 1, 2, 3), 1, 2, 3)
    spoil(store, 3)
    spoil(store, 2, "manifest.json")
    before = dict(store.content)
    with caplog.at_level(logging.WARNING):
        found = loaded(store, tmp_path / "nowhere")
    assert found is not None
    assert found.step == 1
    assert store.content == before
    assert "the copy of step 3 in s3://b/run is damaged" in caplog.text
    assert "the copy of step 2 in s3://b/run is damaged" in caplog.text
    spoil(store, 1)
    with pytest.raises(RunFolderError, match=r"every checkpoint is damaged .*s3://b/run"):
        loaded(store, tmp_path / "nowhere")


class Away(Objects):
    def names(self, folder: Path) -> list[str]:
        raise OSError(101, "Network is unreachable")

    def size(self, path: Path) -> int | None:
        raise OSError(101, "Network is unreachable")


def test_nothing_begins_anew_while_the_copies_are_out_of_reach(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be told: Network is unreachable"):
        loaded(Away(), tmp_path / "nowhere")
    found = resumed(run_with(tmp_path / "run", 1), Away())
    assert found is not None
    assert found.step == 1


def test_each_rank_reads_its_ranges_alone(tmp_path: Path) -> None:
    store = copies(run_with(tmp_path / "run", 1, ranks=4), 1, ranks=4)
    files = [v for k, v in store.content.items() if k.endswith(".safetensors")]
    read: list[int] = []

    def be_rank(world: ThreadWorld) -> None:
        mine = Objects(store.content)
        found = loaded(mine, tmp_path / "nowhere", world=world)  # type: ignore[arg-type]
        assert found is not None
        read.append(mine.bytes_read - len(store.content[key_of(store, 1, "manifest.json")]))

    assert run_threads(4, be_rank) == [None] * 4
    # Rank 0 read manifests twice; headers are most of such small files.
    assert max(read) < sum(map(len, files)) / 2


@pytest.mark.parametrize("told", ["on the disk", "with the copies"])
def test_a_step_that_the_run_turned_its_back_on_is_no_copy_to_go_on_from(
    told: str, tmp_path: Path
) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    store = copies(run, 1, 2)
    add_withdrawal(run.withdrawn, Withdrawal(attempt=1, time=2e9, after=1))
    if told == "with the copies":
        uploader(store, run).introduce()
        run = RunFiles(tmp_path / "nowhere")
    else:
        StepFolders(LocalStorage(), run.checkpoints).quarantine(2, "given up")
    found = resumed(run, store)
    assert found is not None
    assert found.step == 1
    # The same step, done again by the next attempt, counts, and the other copy goes.
    again = run_with(tmp_path / "again", 2, attempt=2)
    shutil.copy(tmp_path / "run/withdrawn.json", again.withdrawn)
    assert upload(store.content, again, 2, attempt=2, keep_last=9)
    found = resumed(run, store)
    assert found is not None
    assert found.step == 2
    assert [folder.step for folder in all_folders(store)] == [1, 2]
