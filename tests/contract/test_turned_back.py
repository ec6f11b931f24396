"""A run that ends badly tells its copies where it turned back, for a machine with nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from launch.driver import drive
from launch.outcome import Outcome
from launch.run.turned_back import tell_copies
from launch.slurm import verdict
from tests.helpers.agent_process import Attempt
from tests.helpers.copies import copies
from tests.helpers.object_model import Objects, loaded, run_with
from tests.helpers.process_nodes import ProcessNodes
from trainer.commands.turned_back import tell
from trainer.errors import Exit, RunFolderError
from trainer.records.attempt import ErrorRecord, write_record
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import Withdrawal, add_withdrawal, end_withdrawals
from trainer.storage.remote import open_store

URL = "s3://b/run"  # of tests.helpers.object_model.uploader
GAVE_UP = Outcome("give_up", Exit.NO_PROGRESS, "3 attempts in a row without a new checkpoint")


def a_run_that_turned_back(folder: Path, url: str) -> RunFiles:
    """Steps 1 and 2 have copies under URL/run; the run gave up step 2 where nobody heard of it."""
    run = run_with(folder, 1, 2)
    Path(url.removeprefix("file://")).mkdir()
    store = open_store(f"{url}/run")
    for name, content in copies(run, 1, 2).content.items():
        blocks = [np.frombuffer(content, dtype=np.uint8)]
        store.put(Path(name), lambda blocks=blocks: blocks, size=len(content))
    remote = {"url": url, "options": {}}
    config = {"run": {"name": "run"}, "checkpoint": {"remote": remote}}
    write_json(run.attempt(1).plan, {"world_size": 1, "config": config})
    add_withdrawal(run.withdrawn, Withdrawal(attempt=1, time=time.time(), after=1))
    return run


def newest(url: str, folder: Path) -> int:
    found = loaded(open_store(f"{url}/run"), folder / "nowhere")
    assert found is not None
    return found.step


def test_a_machine_with_nothing_goes_on_from_where_the_run_turned_back(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/elsewhere"
    given = Attempt(tmp_path, ["refuse", "the numbers cannot be right"])
    a_run_that_turned_back(given.run.root, url)
    assert newest(url, tmp_path) == 2
    code, _, said = given.start().end()
    assert code == Exit.STOP, said
    assert newest(url, tmp_path) == 1


def test_so_it_is_where_a_scheduler_carries_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/elsewhere"
    given = Attempt(tmp_path, ["wait"])  # for its files; nothing is started
    run = a_run_that_turned_back(given.run.root, url)
    bad = ErrorRecord(time.time(), 0, "n1", "RunFolderError", "no way on", int(Exit.STOP))
    write_record(run.attempt(1).error, bad)
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert verdict.main([str(run.root), "--first", "1", "--after", "1"]) == Exit.DONE
    assert capsys.readouterr().out == f"leave {int(Exit.STOP)}\n"
    assert newest(url, tmp_path) == 1


def test_so_it_is_where_a_driver_carries_it_over_nodes(tmp_path: Path) -> None:
    """Its agents leave the telling to it: there is one of it, and many of them."""
    url = f"file://{tmp_path}/elsewhere"
    given = Attempt(tmp_path, ["refuse", "the numbers cannot be right"])
    run = a_run_that_turned_back(given.run.root, url)
    assert drive(run, 1, ProcessNodes("n0", env=given.env), env={}).exit_code == Exit.STOP
    assert newest(url, tmp_path) == 1


def test_what_is_back_in_its_place_counts_elsewhere_too(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1, 2)
    store = copies(run, 1, 2)
    add_withdrawal(run.withdrawn, Withdrawal(attempt=1, time=time.time(), after=1))
    tell(store, run, url=URL)
    assert (found := loaded(store, tmp_path / "a")) is not None
    assert found.step == 1
    end_withdrawals(run.withdrawn, attempt=1, after=1)
    tell(store, run, url=URL)
    assert (found := loaded(store, tmp_path / "b")) is not None
    assert found.step == 2
    changes = len(store.changes)
    tell(store, run, url=URL)  # they know
    assert len(store.changes) == changes


def test_copies_of_another_run_and_no_copies_are_left_alone(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 1)
    store, nothing = copies(run, 1), Objects()
    add_withdrawal(run.withdrawn, Withdrawal(attempt=1, time=time.time(), after=0))
    write_json(run.run_json, read_json(run.run_json) | {"run_id": "f" * 16})
    before = dict(store.content)
    tell(store, run, url=URL)
    tell(nothing, run, url="s3://b/never")
    with pytest.raises(RunFolderError, match="step 1 was copied there: is it mounted"):
        tell(nothing, run, url=URL)
    assert store.content == before
    assert not nothing.content


def test_copies_that_cannot_be_told_are_said_so_with_what_to_do(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/elsewhere"
    run = a_run_that_turned_back(tmp_path / "run", url)
    (tmp_path / "elsewhere/run/run.json").write_text("{")
    said = tell_copies(run, GAVE_UP)
    assert said.startswith(f"the copies in {url} could not be told which steps the run gave up (")
    assert "run.json of the remote copies is damaged" in said
    assert said.endswith(
        f"start it again on this machine first, or put {run.withdrawn} beside them"
    )


@pytest.mark.parametrize("code", [Exit.DONE, Exit.SAVED, Exit.INTERRUPTED])
def test_a_run_that_ends_in_order_asks_nobody(tmp_path: Path, code: Exit) -> None:
    url = f"file://{tmp_path}/elsewhere"
    run = a_run_that_turned_back(tmp_path / "run", url)
    (tmp_path / "elsewhere/run/run.json").write_text("{")
    assert tell_copies(run, Outcome("done", code, "")) == ""
    run.withdrawn.unlink()
    assert tell_copies(run, GAVE_UP) == ""
