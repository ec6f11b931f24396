"""The installed package stands alone: its settings and templates come with it."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_COMPOSES = """
import launch
from launch.compose import compose
print(launch.__file__)
print(*sorted(compose([]).values))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Without isolation: building must not need the network.
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*build, str(_ROOT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("longhaul-*.whl")
    return path


def test_the_wheel_holds_every_file_of_the_program_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    travels = {"trainer": "trainer", "launch": "launch", "conf": "launch/_conf"}
    if any((_ROOT / "slurm").glob("*")):
        travels["slurm"] = "launch/_slurm"
    expected = {
        f"{target}/{path.relative_to(_ROOT / source).as_posix()}"
        for source, target in travels.items()
        for path in (_ROOT / source).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert names == expected


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as files:
        files.extractall(folder)
    return folder


def _run(installed: Path, folder: Path, *argv: str, timeout_s: int = 300) -> str:
    """Standard output of Python in `folder` with the installed package before all others."""
    done = subprocess.run(
        # -P: the folder one stands in is not importable by itself, as for an installed command.
        [sys.executable, "-P", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed), "PYTHONDONTWRITEBYTECODE": ""},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_wheel_composes_its_settings_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    where, sections = _run(installed, tmp_path, "-c", _COMPOSES).splitlines()
    assert Path(where).is_relative_to(installed)
    assert {"run", "steps", "model", "engine"} <= set(sections.split())
    assert not list(tmp_path.iterdir())


def test_an_installed_wheel_trains_on_the_default_in_an_empty_folder(
    installed: Path, tmp_path: Path
) -> None:
    # The default model, data, engine and ranks; a tokenizer and steps of a size for a test.
    small = ("debug=tiny", "data.tokenizer.vocab_size=300", "data.tokenizer.sample_bytes=100_000")
    said = _run(installed, tmp_path, "-m", "launch", "train", *small)
    assert "first-run: steps 1 to 5" in said
    assert "zero2 bf16, 2 x cpu" in said
    assert "first-run: finished at step 5" in said
    # Its ranks ran the installed code as well: bytecode lies beside what was imported.
    assert any((installed / "trainer" / "__pycache__").glob("loop.*.pyc"))
    assert "finished" in _run(installed, tmp_path, "-m", "launch", "status", "first-run")
