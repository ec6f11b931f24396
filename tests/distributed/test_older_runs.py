"""What was trained by a version that knew fewer settings can still be used: conf/ says the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch.__main__ import main as longhaul
from launch.settings.asked import defaults
from tests.helpers.trained_run import trained_run
from trainer.commands import evaluate, export, generate, replay
from trainer.errors import Exit
from trainer.export.trained import ORIGIN
from trainer.records.attempt import Done, write_record
from trainer.records.run_files import RunFiles

Verb = Callable[[list[str]], int]

_VERBS: dict[str, tuple[Verb, list[str]]] = {
    "evaluate": (evaluate.main, ["--rows", "5", "--json"]),
    "generate": (generate.main, ["--max-new-tokens", "4", "--json"]),
    "export": (export.main, ["--rows", "0", "--json"]),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFiles:
    """Its plan knows neither the watch nor copies elsewhere, nor one setting of a section."""
    made = trained_run(tmp_path_factory.mktemp("older"))
    age(made.attempt(1).plan)
    return made


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    file = tmp_path_factory.mktemp("known") / "config.json"
    file.write_text(json.dumps(defaults()))
    return ["--defaults", str(file)]


def age(path: Path) -> None:
    value = json.loads(path.read_text())
    config: dict[str, Any] = value.get("plan", value)["config"]
    del config["watch"], config["checkpoint"]["remote"], config["restart"]["max_idle"]
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("verb", _VERBS)
def test_a_plan_from_before_a_section_is_completed(
    verb: str, run: RunFiles, known: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    command, options = _VERBS[verb]
    assert command([str(run.root), *options, *known]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 6


def test_the_command_lends_the_settings_of_conf(
    run: RunFiles, capfd: pytest.CaptureFixture[str]
) -> None:
    assert longhaul(["evaluate", "--json", "--rows", "5", str(run.root)]) == 0
    assert json.loads(capfd.readouterr().out)["step"] == 6


def test_an_exported_folder_from_before_a_section_is_completed(
    run: RunFiles, known: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out"
    assert export.main([str(run.root), "--to", str(to), "--rows", "0", *known]) == 0
    age(to / ORIGIN)
    assert evaluate.main([str(to), "--rows", "5", "--json", *known]) == 0
    assert evaluate.main([str(to), "--rows", "5"]) == Exit.STOP
    assert f"{to / ORIGIN} is no plan of this version: config." in capsys.readouterr().err


@pytest.mark.parametrize("verb", _VERBS)
def test_without_them_one_sentence_says_what_is_missing(
    verb: str, run: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    command, options = _VERBS[verb]
    assert command([str(run.root), *options]) == Exit.STOP
    [said] = capsys.readouterr().err.splitlines()
    assert said == (
        f"error: {run.attempt(1).plan} is no plan of this version: config.checkpoint.remote: "
        "Field required, and 2 more like it"
    )


@pytest.mark.parametrize("verb", [*_VERBS, "replay"])
def test_a_finished_run_without_a_checkpoint_is_told_in_one_sentence(
    verb: str, run: RunFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = RunFiles(tmp_path / "bare")
    shutil.copytree(run.root, bare.root)
    shutil.rmtree(bare.checkpoints)
    write_record(bare.attempt(1).done, Done(time=1.0, step=6, loss=4.0))
    command = replay.main if verb == "replay" else _VERBS[verb][0]
    assert command([str(bare.root)]) == Exit.REFUSED
    [said] = capsys.readouterr().err.splitlines()
    wanted = "run bare is finished and none of its checkpoints is left"
    if verb == "replay":
        wanted = "has no incidents"
    assert wanted in said


@pytest.mark.parametrize("verb", [*_VERBS, "replay"])
def test_a_step_is_a_number(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = replay.main if verb == "replay" else _VERBS[verb][0]
    with pytest.raises(SystemExit) as caught:
        command(["here", "--step", "newest"])
    assert caught.value.code == Exit.REFUSED
    assert "'newest' is not the number of a step, such as 100" in capsys.readouterr().err
