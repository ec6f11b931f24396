"""Fragments of several attempts, one torn by a kill, become one run of W&B without a gap."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch.commands import sync
from launch.syncing.fragments import fragments
from launch.syncing.transaction_log import look
from launch.syncing.upload import NotSynced
from tests.helpers.reports import step_report
from tests.helpers.told_run import told_run
from tests.helpers.wandb_server import wandb_server
from trainer.errors import Exit, Refused
from trainer.records.redact import redactor_of
from trainer.records.run_files import RunFiles


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """Steps 1 to 40 and 31 to 60, written by W&B's own client; the first fragment was torn."""
    run = told_run(tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trainer.observers.wandb._FINISH_S", 300.0)
        for attempt, steps in ((1, range(1, 41)), (2, range(31, 61))):
            _write(run, attempt=attempt, steps=steps)
    first = fragments(run.wandb)[0].log
    first.write_bytes(first.read_bytes()[:-5])
    return run


def _write(run: RunFiles, *, attempt: int, steps: range) -> None:
    from trainer.observers.wandb import Wandb

    observer = Wandb(
        run.wandb,
        mode="offline",
        run_id="0123456789abcdef",
        name="told",
        project="p",
        entity="me",
        tags=(),
        attempt=attempt,
        config={"steps": 60},
        redactor=redactor_of({}),
    )
    for step in steps:
        observer.on_step(step_report(step))
    observer.close()


def test_it_is_one_run_without_a_gap(
    run: RunFiles,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # where W&B would leave its own logs, if it were let
    first, second = fragments(run.wandb)
    whole = look(first.log)
    assert whole.is_torn
    assert not whole.damaged
    assert not look(second.log).is_torn
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody there
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    command = ["told", "--root", str(run.root.parent), "--json"]
    assert sync.main([*command, "--dry-run"]) == Exit.DONE
    planned = json.loads(capsys.readouterr().out)
    assert [row["why"] for row in planned] == ["torn", ""]
    assert look(first.log) == whole  # only looked at
    with pytest.raises(NotSynced, match=r"--time-out gives it more|W&B was not told"):
        sync.main([*command, "--time-out", "5"])
    assert not first.is_synced

    with wandb_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        assert sync.main(command) == Exit.DONE
        told = server.runs["0123456789abcdef"]
    lines = [told.history[number] for number in sorted(told.history)]
    assert sorted(told.history) == list(range(len(lines)))
    assert [(line["attempt"], line["step"]) for line in lines] == [
        *((1, step) for step in range(1, 41)),
        *((2, step) for step in range(31, 61)),
    ]
    assert told.project == "p"
    (aside,) = first.folder.glob("*.cut-at-*")  # nothing is thrown away
    assert aside.stat().st_size == whole.size - whole.end
    capsys.readouterr()
    assert sync.main(command[:-1]) == Exit.DONE
    assert "has been told of all 2" in capsys.readouterr().out
    assert list((tmp_path / "wandb").iterdir()) == []


def test_a_bit_that_flipped_is_damage_and_no_tail(run: RunFiles, tmp_path: Path) -> None:
    content = bytearray(fragments(run.wandb)[1].log.read_bytes())
    assert not look(fragments(run.wandb)[1].log).is_torn
    content[len(content) // 2] ^= 4
    copy = tmp_path / "x.wandb"
    copy.write_bytes(content)
    found = look(copy)
    assert found.damaged
    assert 0 < found.records < look(fragments(run.wandb)[1].log).records
    for end in range(7, len(content), 61):  # wherever it is torn, what is kept is there
        copy.write_bytes(content[:end])
        cut = look(copy)
        assert cut.end <= end


def test_a_run_without_wandb_is_refused(tmp_path: Path) -> None:
    told_run(tmp_path)
    with pytest.raises(Refused, match="nothing for W&B: observers=wandb writes it"):
        sync.main(["told", "--root", str(tmp_path)])


def test_what_is_no_log_is_refused_by_name(tmp_path: Path) -> None:
    run = told_run(tmp_path)
    folder = run.wandb / "offline-run-20261122_010203-abc"
    folder.mkdir(parents=True)
    (folder / "run-abc.wandb").write_text("no log")
    with pytest.raises(Refused, match=r"run-abc\.wandb is no transaction log"):
        sync.main(["told", "--root", str(tmp_path)])
