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
    done = subprocess.run([*build, str(_ROOT)], capture_output=True, text=True, timeout=90)
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


def test_an_installed_wheel_composes_its_settings_in_an_empty_folder(
    wheel: Path, tmp_path: Path
) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as files:
        files.extractall(installed)
    done = subprocess.run(
        [sys.executable, "-c", _COMPOSES],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    where, sections = done.stdout.splitlines()
    assert Path(where).is_relative_to(installed)
    assert {"run", "steps", "model", "engine"} <= set(sections.split())
    assert not list(empty.iterdir())
