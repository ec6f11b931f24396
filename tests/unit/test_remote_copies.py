"""Copies of steps in another place: sent once, found again, never believed before they are read."""

from __future__ import annotations

import errno
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from launch.next_attempt import next_attempt
from launch.outcome import Outcome
from launch.ranks_spec import RANKS_FILE
from launch.run_folder import new_attempt
from tests.helpers.configs import values
from tests.helpers.object_model import (
    RUN_ID,
    Objects,
    engine,
    loaded,
    run_with,
    upload,
    uploader,
    with_attempt,
)
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.folder import StepFolders, read_failure
from trainer.checkpoint.remote_loading import Found, load_newest
from trainer.checkpoint.remote_steps import all_folders
from trainer.checkpoint.uploads import Remote, Uploads
from trainer.commands.checkpoint import main as checkpoint_command
from trainer.commands.remote import look
from trainer.config.explain import validate
from trainer.dist.world import Alone
from trainer.errors import (
    CheckpointError,
    ConfigError,
    DamagedCheckpoint,
    Exit,
    Refused,
    RunFolderError,
    SaveFailed,
)
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal, read_withdrawals
from trainer.storage.local import LocalStorage
from trainer.storage.patient import Patient
from trainer.storage.remote import Blocks, ObjectStore, open_store


def resumed(run: RunFiles, store: ObjectStore, **settings: Any) -> Found | None:
    """What an attempt with this disk goes on from; every value was compared."""
    ours, disk = engine(Alone()), StepFolders(LocalStorage(), run.checkpoints)
    found = load_newest(
        Alone(), ours, disk, store, run=run, run_hash=RUN_ID, url="s3://b/run",
        **{"delays_s": ()} | settings,
    )  # fmt: skip
    assert found is None or not ours.differs(found.step)
    return found


def copies(run: RunFiles, *steps: int, **settings: Any) -> Objects:
    store = Objects()
    for step in steps:
        assert upload(store.content, run, step, **{"keep_last": 9} | settings)
    return store


def key_of(store: Objects, step: int, name: str) -> str:
    return next(k for k in store.content if f"step-{step:08d}." in k and k.endswith(name))


def spoil(store: Objects, step: int, name: str = "rank-00000.safetensors") -> None:
    key = key_of(store, step, name)
    content = bytearray(store.content[key])
    content[-1] ^= 1
    store.content[key] = bytes(content)


# --- the door to fsspec ----------------------------------------------------------------------


@pytest.fixture(params=["memory", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"memory://{tmp_path}/base" if request.param == "memory" else f"file://{tmp_path}/base"


def test_objects_are_put_listed_read_and_removed(place: str) -> None:
    store = open_store(place)
    assert store.names(Path("a")) == []
    assert store.size(Path("a/b/c")) is None
    data = np.arange(200, dtype=np.uint8)
    store.put(Path("a/b/c"), lambda: [data[:50], data[50:]], size=200)
    store.put(Path("a/d"), lambda: [data[:3]], size=3)
    assert (store.names(Path("a")), store.sizes(Path("a"))) == (["b", "d"], {"d": 3})
    out = np.zeros(20, dtype=np.uint8)
    assert store.read(Path("a/b/c"), 190, out) == 10
    assert (out[:10] == data[190:]).all()
    with pytest.raises(FileNotFoundError):
        store.read(Path("a/none"), 0, out)
    store.remove([Path("a/d"), Path("a/d")])
    assert store.names(Path("a")) == ["b"]


@pytest.mark.parametrize("size", [10, 40 << 20])
def test_what_fails_half_way_leaves_no_object(place: str, size: int) -> None:
    store, block = open_store(place), np.ones(size // 2, dtype=np.uint8)

    def blocks() -> Any:
        yield block
        raise DamagedCheckpoint("chunk 7")

    with pytest.raises(DamagedCheckpoint):
        store.put(Path("a/b"), blocks, size=size)
    if place.startswith("file"):  # memory: shows half an object; readers check sizes
        assert store.sizes(Path("a")) == {}


def test_a_place_that_refuses_is_no_damage_and_is_tried_again(tmp_path: Path) -> None:
    store, slept = Objects(), list[float]()
    tries = iter([OSError(5, "reset"), OSError(5, "reset"), None])

    def before(verb: str, path: Path) -> None:
        if (error := next(tries)) is not None:
            raise error

    store.before = before
    data = np.ones(3, dtype=np.uint8)
    Patient(store, sleep=slept.append).put(Path("a"), lambda: [data], size=3)
    assert (store.content, slept) == ({"a": b"\1\1\1"}, [1.0, 2.0])


def test_a_network_that_breaks_says_nothing_about_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """s3fs calls all that it does not know EIO, which on a disk means a broken file."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "sentinel-that-is-secret")

    def breaks(*given: object, **more: object) -> bytes:
        raise OSError(errno.EIO, "reset by peer, key sentinel-that-is-secret")

    monkeypatch.setattr(MemoryFileSystem, "cat_file", breaks)
    with pytest.raises(OSError, match="reset by peer") as caught:
        open_store("memory://x").read(Path("a"), 0, np.empty(1, dtype=np.uint8))
    assert not isinstance(read_failure(caught.value, Path("a")), DamagedCheckpoint)
    assert "sentinel" not in str(caught.value)


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


def test_a_damaged_step_of_the_disk_is_read_from_its_copy(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    store = copies(run, 1, 2)
    path = run.checkpoints / "step-00000002/rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    found = resumed(run, store)
    assert found is not None
    assert (found.step, found.is_copy) == (2, True)
    assert StepFolders(LocalStorage(), run.checkpoints).quarantined() == ["step-00000002.1"]


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


# --- a rank's side ---------------------------------------------------------------------------


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


# --- settings, commands ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"url": "bucket/prefix"}, "url: 'bucket/prefix' is no URL such as s3://bucket/prefix"),
        ({"url": "memory://x"}, "each process's own"),
        ({"url": "s3://me:pw@b/p"}, "a user, a password or a signature"),
        ({"url": "s3://b/p?X-Amz-Signature=1"}, "a user, a password or a signature"),
        ({"options": {"key": "AAAA"}}, "options.key: looks like a credential"),
        ({"options": {"secret": "AAAA"}}, "options.secret: looks like a credential"),
        (
            {"options": {"client_kwargs": {"aws_session_token": "x"}}},
            "options.client_kwargs.aws_session_token: looks like a credential",
        ),
        ({"options": {"endpoint_url": "http://a:b@c"}}, "a URL with a user in it is not kept"),
    ],
)
def test_settings_hold_no_credentials(section: dict[str, Any], said: str) -> None:
    given = values()
    given["checkpoint"]["remote"] |= section
    with pytest.raises(ConfigError) as caught:
        validate(given)
    assert said in str(caught.value)
    assert caught.value.exit_code == 2


def test_an_endpoint_is_no_credential() -> None:
    given = values()
    options = {"endpoint_url": "http://127.0.0.1:9000", "anon": False}
    given["checkpoint"]["remote"]["options"] = options
    assert validate(given).checkpoint.remote.options == options


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gs://b/p", r"pip install 'longhaul\[gs\]'"),
        ("nonsense://b", "no store has URLs that begin with nonsense:"),
    ],
)
def test_a_store_that_cannot_be_used_here_is_refused(url: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        open_store(url)


@pytest.fixture
def shared(tmp_path: Path) -> Callable[..., str]:
    """The URL of copies of these steps on a disk."""

    def make(*steps: int) -> str:
        url = f"file://{tmp_path}/copies/run"
        run = run_with(tmp_path / "run", *steps)
        for step in steps:
            uploader(open_store(url), run, keep_last=9).upload(step)
        return url

    return make


def test_copies_are_listed_and_verified_by_their_url(
    shared: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = shared(1, 2)
    assert checkpoint_command(["list", url]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["step", "1", "2"]
    assert checkpoint_command(["verify", url]) == 0
    assert capsys.readouterr().out.count("whole") == 2
    (file,) = (tmp_path / "copies").glob("run/checkpoints/step-00000002.*/rank-*")
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    assert checkpoint_command(["verify", url, "2"]) == 78
    assert "does not match its checksum" in capsys.readouterr().out
    assert checkpoint_command(["list", f"file://{tmp_path}/none"]) == 2
    assert "no checkpoints here; give checkpoint.remote.url" in capsys.readouterr().err


def test_what_a_machine_with_nothing_needs_is_there(
    shared: Callable[..., str], tmp_path: Path
) -> None:
    url = shared(1)
    with_attempt(RunFiles(tmp_path / "run"), 1)
    found = look(url, {})
    assert found["run"] == json.loads((tmp_path / "run/run.json").read_text())
    assert (found["attempt"], found["plan"], found["problem"]) == (1, {"attempt": 1}, "")
    assert look(f"file://{tmp_path}/none", {})["run"] is None
