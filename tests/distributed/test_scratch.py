"""What ranks keep in temporary files goes with their agent, however either of them leaves."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.distributed.test_agent import Attempt, still_alive, wait_for


@pytest.fixture
def attempt(tmp_path: Path) -> Iterator[Attempt]:
    one = Attempt(tmp_path, ["wait"], ["wait"])
    one.env["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    yield one.start().until_up()
    assert one.process is not None
    if one.process.poll() is None:
        one.process.kill()
    one.process.communicate()
    wait_for(lambda: not still_alive(one.run))


def scratch_of(one: Attempt) -> Path:
    words = Path(f"/proc/{one.pid(0)}/environ").read_bytes().split(b"\0")
    (found,) = [w for w in words if w.startswith(b"TMPDIR=")]
    return Path(os.fsdecode(found.removeprefix(b"TMPDIR=")))


@pytest.mark.parametrize("how", ["the attempt ends", "the agent is killed"])
def test_a_folder_that_a_vendor_forgot_is_gone(attempt: Attempt, tmp_path: Path, how: str) -> None:
    scratch = scratch_of(attempt)
    assert scratch.parent == tmp_path / "tmp"
    assert scratch.stat().st_mode & 0o777 == 0o700
    (scratch / "vendors").mkdir()
    (scratch / "vendors" / "cache").touch()
    attempt.signal(signal.SIGTERM if how == "the attempt ends" else signal.SIGKILL)
    attempt.end()
    wait_for(lambda: not any((tmp_path / "tmp").iterdir()))
