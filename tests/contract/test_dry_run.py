"""What `longhaul train --dry-run` costs, and that it leaves nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_a_dry_run_writes_nothing_and_takes_little_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with every error of preparation kept away: nothing is prepared by it."""
    monkeypatch.chdir(tmp_path)
    code = (
        "import sys, time; from launch.__main__ import main;"
        "code = main(['train', '--dry-run', '--json']);"
        "heavy = {'torch', 'deepspeed', 'transformers', 'numpy'} & set(sys.modules);"
        "assert code == 0 and not heavy, (code, heavy);"
        "assert time.process_time() < 5.0, time.process_time()"
    )
    # Compiled files of a fresh checkout are not counted: the first of two pays for them.
    for last in (False, True):
        ended = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=300
        )
        if last:
            assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["plan"]["world_size"] == 2
    assert not list(tmp_path.iterdir())
