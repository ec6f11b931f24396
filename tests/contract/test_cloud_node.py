"""What runs on a rented machine: a run made, found again, or left alone. Ranks do not compute."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launch.backends.local import LocalBackend
from launch.cloud import node
from launch.cloud.carried import VARIABLE, Carried, carried_by, carried_text
from launch.cloud.peers import is_first, settings_of_peers
from launch.run.run_folder import attempts, find, read_record
from tests.helpers.cloud import RUN_ID, SKY, Tools, plan_for
from tests.helpers.configs import config
from tests.helpers.fake_ranks import blank_store
from trainer.errors import Refused

RANKS = LocalBackend(module="tests.helpers.fake_worker")
_FINISH = json.dumps({"0": ["finish"]})
_REFUSE = json.dumps({"0": ["refuse", "a bad setting"]})


@pytest.fixture
def carried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Carried:
    """Of a run of one rank, sent to a machine whose home is this folder."""
    (tmp_path / "corpus.txt").write_text("some text\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    wanted = config(
        *SKY,
        "data=text_files",
        "data.sources.files.paths=[corpus.txt]",
        "checkpoint.remote.url=null",
        "launch.keeps_run_root=true",
        "launch.gpu=null",
        "resources.device=cpu",
        "resources.ranks_per_node=1",
        "restart=off",
    )
    blank_store(wanted)
    return carried_by(plan_for(wanted))


def _again(carried: Carried, submission: str = "") -> Carried:
    """As a machine that comes back gets it: read anew."""
    values = json.loads(carried_text(carried))
    return replace(Carried(**values), submission=submission or carried.submission)


def _carry_on(carried: Carried) -> int:
    return node.carry_on(_again(carried, carried.submission), backend=RANKS)


def test_a_new_machine_makes_the_run_that_was_sent(
    carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", _FINISH)
    assert _carry_on(carried) == 0
    run = find("first-run", root=Path("longhaul"))
    assert read_record(run).run_id == RUN_ID
    assert _carry_on(carried) == 0  # finished: nothing is started
    assert len(attempts(run)) == 1


def test_a_machine_that_comes_back_goes_on(
    carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", json.dumps({"0": ["die", "100"]}))
    assert _carry_on(carried) == 76
    monkeypatch.setenv("FAKE_BEHAVIOUR", _FINISH)
    assert _carry_on(carried) == 0
    run = find("first-run", root=Path("longhaul"))
    assert len(attempts(run)) == 2
    assert read_record(run).run_id == RUN_ID


def test_what_a_person_has_to_look_at_is_not_tried_again_by_new_machines(
    carried: Carried, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", _REFUSE)
    assert _carry_on(carried) == 78
    monkeypatch.setenv("FAKE_BEHAVIOUR", _FINISH)
    assert _carry_on(carried) == 78
    assert "ended for good (exit code 78); it is not started again" in capsys.readouterr().out
    run = find("first-run", root=Path("longhaul"))
    assert len(attempts(run)) == 1
    # Who submits again has looked.
    assert _carry_on(_again(carried, "lh-first-run-012345-a2")) == 0
    assert len(attempts(run)) == 2


def test_another_run_of_that_name_is_left_alone(
    carried: Carried, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_BEHAVIOUR", _FINISH)
    assert _carry_on(carried) == 0
    with pytest.raises(Refused, match="on this machine is another run of that name"):
        _carry_on(replace(_again(carried), run_id="fedcba9876543210"))


def test_another_version_of_the_package_is_refused(carried: Carried) -> None:
    with pytest.raises(
        Refused, match=r"the run was submitted by 9\.9; launch.package or the image"
    ):
        _carry_on(replace(carried, version="9.9"))
    assert not Path("longhaul").exists()


def test_without_what_a_submission_sends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert node.main() == 2
    assert f"there is no {VARIABLE} in the environment" in capsys.readouterr().err


def test_the_first_of_several_machines_drives_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tools = Tools(tmp_path / "bin", "ssh-keyscan").alone_on_path(monkeypatch)
    tools.answer(("ssh-keyscan", 0, "10.0.0.1 ssh-ed25519 A\n10.0.0.2 ssh-ed25519 B"))
    wanted = config(*SKY, "resources.nodes=2", "batch.micro_batch_size=1")
    given = carried_by(plan_for(wanted)).config["launch"]
    env = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n", "SKYPILOT_NODE_RANK": "0"}
    section = settings_of_peers(given, env)
    assert section["hosts"] == ["10.0.0.1", "10.0.0.2"]
    assert section["grace_s"] == wanted.launch.grace_s
    assert "10.0.0.2 ssh-ed25519 B" in (tmp_path / ".ssh" / "known_hosts").read_text()
    assert is_first(env)
    monkeypatch.setenv(VARIABLE, "{}")
    monkeypatch.setenv("SKYPILOT_NODE_RANK", "1")
    assert node.main() == 0
    assert "the first machine starts the ranks of this one" in capsys.readouterr().out


def test_a_machine_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tools = Tools(tmp_path / "bin", "ssh-keyscan").alone_on_path(monkeypatch)
    tools.answer(("ssh-keyscan", 0, "10.0.0.1 ssh-ed25519 A"))
    given = {"kind": "ssh", "grace_s": 25.0}
    with pytest.raises(Refused, match=r"no ssh server answers on 10\.0\.0\.2"):
        settings_of_peers(given, {"SKYPILOT_NODE_IPS": "10.0.0.1 10.0.0.2"})
    with pytest.raises(Refused, match="no SKYPILOT_NODE_IPS says where the others are"):
        settings_of_peers(given, {})
