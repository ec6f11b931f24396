"""Tab: verbs, groups, choices and settings, quickly, in a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.settings.completion import candidates, run
from trainer.errors import Refused

ROOT = Path(__file__).parents[2]


def test_the_first_word_is_a_verb() -> None:
    assert candidates(["tr"], ["train", "plan"]) == ["train "]
    assert candidates([], ["train", "plan"]) == ["train ", "plan "]


def test_groups_choices_and_settings_are_offered() -> None:
    assert candidates(["train", "model=llama_d"], []) == ["model=llama_debug "]
    assert candidates(["train", "+exp"], []) == ["+experiment="]
    assert candidates(["plan", "data/tok"], []) == ["data/tokenizer="]
    assert candidates(["train", "optimizer.learn"], []) == ["optimizer.learning_rate="]
    assert candidates(["train", "steps.s"], []) == ["steps.save_every="]
    assert candidates(["train", "model=_"], []) == []


def test_settings_follow_the_choices_typed_before() -> None:
    assert "optimizer.beta1=" not in candidates(["train", "optimizer=sgd", "optimizer."], [])
    assert "optimizer.momentum=" in candidates(["train", "optimizer=sgd", "optimizer."], [])


def test_flags_and_run_names_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "run.json").touch()
    assert candidates(["status", ""], []) == ["mine "]
    assert "--dry-run " in candidates(["train", "--"], [])


def test_a_users_folder_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").touch()
    typed = ["train", f"--config-dir={tmp_path}", "model=m"]
    found = candidates(typed, [])
    assert {"model=mine ", "model=mistral_7b "} <= set(found)
    assert all(word.startswith("model=m") for word in found)


def test_another_shell_is_refused() -> None:
    with pytest.raises(Refused, match="there is install=bash and uninstall=bash"):
        run(["install=tcsh"])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    """The installed script, asked as bash asks it: `=` breaks words, so only the rest is given."""
    program = tmp_path / "longhaul"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from launch.settings.completion import run\nraise SystemExit(run(sys.argv[2:]))\n"
    )
    program.chmod(0o755)
    script = (
        'eval "$(longhaul --shell-completion install=bash)"\n'
        "complete -p longhaul >&2\n"
        'COMP_LINE="longhaul train model=llama_d"; COMP_POINT=${#COMP_LINE}\n'
        '_longhaul; printf "%s|" "${COMPREPLY[@]}"\n'
    )
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", script], env=env, capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout == "llama_debug |"
    assert "-F _longhaul longhaul" in done.stderr


def test_completion_loads_neither_hydra_nor_the_schema() -> None:
    program = (
        "import sys\nfrom launch.settings.completion import candidates\n"
        "candidates(['train', 'optimizer.'], ['train'])\n"
        "loaded = {'hydra', 'omegaconf', 'pydantic', 'torch'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=300)
