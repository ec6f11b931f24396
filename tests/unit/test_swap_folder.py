"""Swap files lie in a folder of one rank and are gone when it is, however it ended."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.engine.swap_folder import SwapFolder
from trainer.errors import ConfigError


def folders(root: Path) -> set[str]:
    return {path.name for path in root.iterdir() if path.is_dir()}


def test_each_rank_has_a_folder_that_only_its_user_reads(tmp_path: Path) -> None:
    first, second = (SwapFolder(str(tmp_path), rank=rank) for rank in (0, 1))
    assert folders(tmp_path) == {first.path.name, second.path.name}  # neither swept the other
    assert all(stat.S_IMODE(one.path.stat().st_mode) == 0o700 for one in (first, second))
    (first.path / "state.swp").write_bytes(b"x")
    first.remove()
    first.remove()
    assert folders(tmp_path) == {second.path.name}
    second.remove()


def test_what_a_killed_rank_left_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import sys; from trainer.engine.swap_folder import SwapFolder;"
        f"made = SwapFolder({str(tmp_path)!r}, rank=0);"
        "(made.path / 'state.swp').write_bytes(b'x'); print(made.path, flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as rank:
        assert rank.stdout is not None
        left = Path(rank.stdout.readline().strip())
        neighbour = SwapFolder(str(tmp_path), rank=1)
        assert (left / "state.swp").exists(), "a living rank lost its files"
        os.kill(rank.pid, signal.SIGKILL)
    assert (left / "state.swp").exists()
    after = SwapFolder(str(tmp_path), rank=0)
    assert folders(tmp_path) == {neighbour.path.name, after.path.name}
    neighbour.remove()
    after.remove()


def test_a_disk_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"no swap files can be written in {tmp_path}/disk"):
        SwapFolder(str(tmp_path / "disk"), rank=0)
    assert not list(tmp_path.iterdir()), "a mistyped mount point was made on the root disk"
