"""A rank's side of copies elsewhere: what it orders of its courier, and what it reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launch.node.ranks_spec import RANKS_FILE
from launch.outcome import Outcome
from launch.run.next_attempt import bring_back, next_attempt
from launch.run.run_folder import new_attempt
from tests.helpers.copies import copies, resumed
from tests.helpers.object_model import Objects, run_with
from trainer.checkpoint.upload_failures import failure_of
from trainer.checkpoint.uploader import Uploader, UploadSettings
from trainer.checkpoint.uploads import Remote, Uploads
from trainer.dist.world import Alone
from trainer.errors import Exit, SaveFailed
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import read_withdrawals
from trainer.storage.local import LocalStorage


class Slow:
    """A courier whose answers come when the test says."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.answers: list[dict[str, Any]] = []

    def give(self, order: dict[str, Any]) -> None:
        self.orders.append(order)

    def said(self) -> dict[str, Any] | None:
        return self.answers.pop(0) if self.answers else None

    def close(self) -> None: ...

    def done(self, step: int, **changes: Any) -> None:
        value = {"step": step, "sent": 5, "total": 9, "problem": "", "seconds": 0.5}
        self.answers.append({"value": value | changes})


def uploads(folder: Path, courier: Slow, **settings: Any) -> Uploads:
    remote = Remote(url="s3://b/run", **{"drain_s": 0.0} | settings)
    run = RunFiles(folder)
    return Uploads(remote, run, attempt=1, rank=0, world_size=1, courier=courier)


def test_one_step_is_under_way_and_the_newest_one_waits(tmp_path: Path) -> None:
    courier = Slow()
    ours = uploads(tmp_path, courier)
    for step in (1, 2, 3):
        ours.published(Alone(), step)
    assert [order["step"] for order in courier.orders] == [1]
    assert ours.reports() == []
    courier.done(1)
    (report,) = ours.reports()
    assert (report.step, report.succeeded, report.bytes, report.skipped) == (1, True, 9, 1)
    (left,) = ours.drain(Alone(), lambda: None)  # begins the one that waited, and gives it up
    assert [order["step"] for order in courier.orders] == [1, 3]
    assert left.problem == "step 3 was not uploaded: not done 0 s after the end of training"


def test_each_nth_committed_step_is_due(tmp_path: Path) -> None:
    courier = Slow()
    ours = uploads(tmp_path, courier, every=2)
    for step in (10, 20, 30, 40):
        ours.published(Alone(), step)
        courier.done(step)
    assert [order["step"] for order in courier.orders] == [20, 40]


def test_a_failed_upload_is_told_and_ends_nothing(tmp_path: Path) -> None:
    courier = Slow()
    ours = uploads(tmp_path, courier)
    ours.published(Alone(), 7)
    courier.answers.append({"error": "no such bucket", "kind": "OSError"})
    (report,) = ours.reports()
    assert not report.succeeded
    assert report.problem == "step 7 was not uploaded: no such bucket"


def test_what_is_in_the_way_is_told_once_and_named_where_training_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    courier, full = Slow(), "s3://b/run is full (No space left on device)"
    ours = uploads(tmp_path, courier)
    ours.published(Alone(), 7)
    courier.answers += [{"note": full}, {"note": full}]
    with caplog.at_level("WARNING"):
        (left,) = ours.drain(Alone(), lambda: None)
    assert left.problem == (
        f"step 7 was not uploaded: not done 0 s after the end of training: {full}"
    )
    assert caplog.text.count(f"copies of steps: {full}; tried again") == 1
    courier.done(7)  # the notes were no answers
    assert [report.succeeded for report in ours.reports()] == [True]


def test_a_step_that_is_made_anew_is_sent_anew(tmp_path: Path) -> None:
    courier, run = Slow(), run_with(tmp_path, 7)
    ours = uploads(tmp_path, courier)
    ours.published(Alone(), 7)
    courier.answers.append({"error": "no such bucket", "kind": "OSError"})
    ours.reports()
    assert failure_of(run.attempt(1), 7)
    ours.published(Alone(), 7)
    assert not failure_of(run.attempt(1), 7)


def test_going_back_is_told_to_the_copies_before_the_disk_changes(tmp_path: Path) -> None:
    courier = Slow()
    ours = uploads(tmp_path, courier)
    ours.published(Alone(), 3)
    ours.published(Alone(), 4)
    ours.withdraw(2)
    assert read_withdrawals(tmp_path / "withdrawn.json")[0].after == 2
    assert [order["do"] for order in courier.orders] == ["upload", "withdraw"]
    courier.done(3)
    courier.answers.append({"value": {}})
    assert [report.step for report in ours.reports()] == [3]
    assert ours.drain(Alone(), lambda: None) == []  # step 4 is no longer wanted


@pytest.mark.parametrize("url", [None, "s3://b/p"])
def test_a_step_that_is_set_aside_takes_its_copies_along(url: str | None, tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    first = new_attempt(run)
    (first.root / RANKS_FILE).parent.mkdir(parents=True)
    (first.root / RANKS_FILE).write_text("{}")
    plan = {"world_size": 1, "config": {"checkpoint": {"remote": {"url": url}}}}
    write_json(first.plan, plan)
    store = copies(run, 1, 2, attempt=first.number)
    next_attempt(run, first, Outcome("again", Exit.FAILED, "x", step_back=True))
    found = resumed(run, store)
    assert found is not None
    assert (found.step, found.is_copy) == ((1, False) if url else (2, True))


def test_a_step_that_is_brought_back_counts_again_with_its_copies_at_the_next_start(
    tmp_path: Path,
) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    first = new_attempt(run)
    (first.root / RANKS_FILE).parent.mkdir(parents=True)
    (first.root / RANKS_FILE).write_text("{}")
    plan = {"world_size": 1, "config": {"checkpoint": {"remote": {"url": "s3://b/p"}}}}
    write_json(first.plan, plan)
    store = copies(run, 1, 2, attempt=first.number)
    following = next_attempt(run, first, Outcome("again", Exit.FAILED, "x", step_back=True))
    found = resumed(run, store)
    assert found is not None
    assert found.step == 1
    nowhere = RunFiles(tmp_path / "nowhere")
    found = resumed(nowhere, store)  # the copies were told of it in that start
    assert found is not None
    assert found.step == 1
    assert bring_back(run, following.number) == "step-00000002 was set aside in vain and is back"
    assert [one.ended for one in read_withdrawals(run.withdrawn)] == [True]
    for start in (run, nowhere):  # by the disk; and, told by that start, by the copies alone
        found = resumed(start, store)
        assert found is not None
        assert (found.step, found.is_copy) == (2, start is nowhere)


def test_rank_0_waits_no_longer_for_a_rank_that_gave_up(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, ranks=2)
    attempt = new_attempt(run)
    courier = Slow()
    remote = Remote(url="s3://b/run")
    theirs = Uploads(remote, run, attempt=attempt.number, rank=1, world_size=2, courier=courier)
    theirs.published(Alone(), 1)
    slept: list[float] = []

    def sleep(seconds: float) -> None:  # rank 1 fails while rank 0 waits
        slept.append(seconds)
        courier.answers.append({"error": "no such bucket", "kind": "OSError"})
        theirs.reports()
        assert len(slept) < 9

    settings = UploadSettings(
        url=remote.url, attempt=attempt.number, rank=0, world_size=2, keep_last=2, timeout_s=3600.0
    )
    mine = Uploader(Objects(), LocalStorage(), run, settings, sleep=sleep)
    write_json(attempt.plan, {})
    with pytest.raises(SaveFailed, match="rank 1 could not send its file; that rank's log says"):
        mine.upload(1)
    assert len(slept) == 1
