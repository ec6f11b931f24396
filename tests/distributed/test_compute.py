"""The door to verbs that compute: terminal, exit code and signals are those of the child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.compute import compute, config_file, with_targets
from launch.run.run_folder import create
from trainer.errors import Refused
from trainer.records.json_file import read_json


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `verb_of_test` that a child can run."""
    repository = str(Path(__file__).parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), repository]))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "verb_of_test.py"


def test_the_exit_code_and_the_output_are_the_childs(
    module: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    module.write_text("import sys; print('said', sys.argv[1:]); sys.exit(78)")
    assert compute("verb_of_test", ["a", "b"]) == 78
    assert capfd.readouterr().out == "said ['a', 'b']\n"


def test_a_killed_child_is_named(module: Path, capfd: pytest.CaptureFixture[str]) -> None:
    module.write_text("import os; os.kill(os.getpid(), 9)")
    assert compute("verb_of_test", []) == 76
    assert "verb_of_test was killed by signal 9 (SIGKILL)" in capfd.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 76)])
def test_a_signal_reaches_the_child(module: Path, number: int, code: int) -> None:
    module.write_text("import time; print('up', flush=True); time.sleep(600)")
    caller = (
        # A job that a shell started in the background has Ctrl-C ignored, and its children too.
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from launch.compute import compute; sys.exit(compute('verb_of_test', []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", caller],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    process.communicate(timeout=300)
    assert process.returncode == code


def test_the_child_dies_with_the_command(module: Path) -> None:
    module.write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    caller = "from launch.compute import compute; compute('verb_of_test', [])"
    process = subprocess.Popen([sys.executable, "-c", caller], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 300
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{child}").exists()


def test_names_of_runs_become_paths_and_paths_stay(tmp_path: Path, module: Path) -> None:
    config = {"run": {"name": "one"}}
    create(tmp_path / "runs", config=config, frozen_hash="")
    create(tmp_path / "other", config=config | {"run": {"name": "two"}}, frozen_hash="")
    (tmp_path / "exported").mkdir()
    assert with_targets(["one", "--step", "5"], count=1) == ["runs/one", "--step", "5"]
    assert with_targets(["--json", "one"], count=1) == ["runs/one", "--json"]
    assert with_targets(["--step", "5", "--rows=3", "one", "-h"], count=1) == [
        *("runs/one", "--step", "5", "--rows=3", "-h"),
    ]
    assert with_targets(["--help"], count=1) == ["--help"]
    assert with_targets(["exported"], count=1) == ["exported"]
    assert with_targets(["./runs/one"], count=1) == ["./runs/one"]
    assert with_targets(["two", "--root", "other"], count=1) == ["other/two"]
    with pytest.raises(Refused, match=r"no run 'onee' under runs/; did you mean one\?"):
        with_targets(["onee"], count=1)


def test_a_configuration_is_lent_as_a_file() -> None:
    with config_file({"a": 1}) as path:
        assert read_json(path) == {"a": 1}
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert not path.parent.exists()
