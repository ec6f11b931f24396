"""README.md and docs/add-a-thing.md do what they say: a newcomer's commands are run."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.__main__ import main
from launch.settings.asked import from_overrides
from launch.settings.several import members
from trainer.records.json_file import read_lines

_ROOT = Path(__file__).resolve().parents[2]
_README = (_ROOT / "README.md").read_text(encoding="utf-8")
_ADD_A_THING = (_ROOT / "docs" / "add-a-thing.md").read_text(encoding="utf-8")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"# file: (\S+)\n")
# A file of this repository that a page points to: `docs/design.md`, [text](docs/design.md).
_POINTER = re.compile(r"[`(]((?:\.ci|conf|docs|launch|tests|trainer|benchmarks)/[\w./-]+)[`)]")
# What makes the README's runs small: 5 steps of short rows, where it names a total 8, and a small
# corpus where it leaves the default. Nothing else about its commands is changed.
_SHRINK = {
    "debug": "tiny",
    "data": "text_files",
    "data.sources.files.paths": "[docs/*.md]",
    "data.sources.files.document": "paragraph",
    "data.held_out_fraction": "0.2",
    "data.tokenizer.vocab_size": "300",
    "data.num_workers": "1",
    "model.num_hidden_layers": "1",
}


def _commands(markdown: str) -> list[str]:
    """The lines of all bash blocks that are not only a comment."""
    text = "\n".join(body for language, body in _BLOCK.findall(markdown) if language == "bash")
    lines = text.replace("\\\n", " ").splitlines()
    return [line for line in lines if _words(line)]


def _words(command: str) -> list[str]:
    return shlex.split(command, comments=True)


class _Shell:
    """A bash in one folder, in which `longhaul` is the checkout under test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "work"
        self.folder.mkdir()
        command = folder / "bin" / "longhaul"
        command.parent.mkdir()
        # -P, as an installed command: the folder one stands in is not importable by itself.
        command.write_text(
            f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(_ROOT))}:$PYTHONPATH\n"
            f'exec {shlex.quote(sys.executable)} -P -m launch "$@"\n'
        )
        command.chmod(0o755)
        self._env = os.environ | {"PATH": f"{command.parent}:{os.environ['PATH']}"}

    def run(self, script: str) -> str:
        """Its standard output. Fails the test, with what was printed, unless it exits with 0."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> _Shell:
    """Where the README's commands follow each other: its reader stands in a clone."""
    made = _Shell(tmp_path_factory.mktemp("newcomer"))
    shutil.copytree(_ROOT / "docs", made.folder / "docs")
    return made


def _shrunk(command: str) -> str:
    """A command that trains, made small; every other one as it stands."""
    words = _words(command)
    if words[1] not in ("train", "resume"):
        return command
    given = {word.partition("=")[0] for word in words}
    words = ["steps.total=8" if word.startswith("steps.total=") else word for word in words]
    if words[1] == "train":
        words += [f"{key}={value}" for key, value in _SHRINK.items() if key not in given]
    return shlex.join(words)


@pytest.mark.parametrize("command", _commands(_README), ids=lambda c: " ".join(_words(c)))
def test_the_readmes_commands_run_in_their_order(shell: _Shell, command: str) -> None:
    words = _words(command)
    if words[0] == "make":  # these set up an environment of their own: are there such targets?
        subprocess.run(["make", "-n", *words[1:]], cwd=_ROOT, check=True, capture_output=True)
        return
    if words[0] == "source":
        assert words[1] == ".venv/bin/activate"
        return
    assert words[0] == "longhaul", f"a command that no test runs: {command}"
    assert shell.run(_shrunk(command)).strip()


def test_the_readme_shows_a_run_before_anything_that_needs_one() -> None:
    commands = [_words(command) for command in _commands(_README)]
    about_a_run = [c for c in commands if "first-run" in c]
    assert {c[1] for c in about_a_run} >= {"logs", "generate", "evaluate", "export"}
    assert commands.index(["longhaul", "train"]) < commands.index(about_a_run[0])


def test_the_readme_is_short_and_says_what_was_not_run() -> None:
    assert len(_README.splitlines()) <= 200
    assert "**Not run on GPUs.**" in _README


@pytest.mark.parametrize("page", ["README.md", "docs/add-a-thing.md", "docs/design.md"])
def test_the_files_a_page_points_to_are_there(page: str) -> None:
    text = (_ROOT / page).read_text(encoding="utf-8")
    mine = re.compile(r"/(mine|x|NAME)\.\w+$")  # stands for a file that the reader writes
    missing = [
        name
        for name in _POINTER.findall(text)
        if not mine.search(name) and not any(_ROOT.glob(name))
    ]
    assert not missing


@pytest.mark.parametrize("verb", ["train", "plan", "data", "verify"])
def test_the_settings_in_a_verbs_help_are_real(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
    shown = capsys.readouterr().out.replace("\\\n", " ")
    examples = re.findall(rf"^(?:example:)? *longhaul {verb} (.*)", shown, re.MULTILINE)
    assert examples
    for example in examples:
        settings = [word for word in _words(example) if "=" in word and not word.startswith("-")]
        if "-m" in example.split():
            members(settings)
        else:
            from_overrides(settings)  # raises with every problem


def test_add_a_thing_works_from_an_empty_folder(tmp_path: Path) -> None:
    newcomer = _Shell(tmp_path)
    for _, body in _BLOCK.findall(_ADD_A_THING):
        if named := _FILE.match(body):
            path = newcomer.folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    script = "\n".join(_commands(_ADD_A_THING))
    said = newcomer.run(script)
    assert "mine: finished at step 20" in said

    # Their loss is -log p + 0.01 (log p)^2, whose mean is at least plain + 0.01 plain^2 (Jensen).
    # The same initial weights and rows under the plain task, one process, say what is plain.
    train = next(c for c in _commands(_ADD_A_THING) if c.startswith("longhaul train"))
    plain = "task=causal_lm engine=plain precision=fp32 resources.ranks_per_node=1 run.name=plain"
    short = "steps.total=1 schedule.warmup_tokens=0 schedule.warmup_steps=0 evals.sample_tokens=0"
    newcomer.run(f"export PYTHONPATH=$PWD\n{train} {plain} {short}")
    custom_losses, (plain_loss,) = _losses(newcomer, "mine"), _losses(newcomer, "plain")
    assert custom_losses[0] > plain_loss + 0.009 * plain_loss**2
    assert custom_losses[-1] < custom_losses[0] - 0.5


def _losses(shell: _Shell, run: str) -> list[float]:
    lines = read_lines(shell.folder / "runs" / run / "metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "step"]
