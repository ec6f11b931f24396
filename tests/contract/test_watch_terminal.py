"""longhaul watch in a real terminal: it shows a run that changes, and gives the screen back."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers.told_run import told_run
from trainer.records.json_file import append_line

WAIT_S = 120.0


def test_a_terminal_sees_news_and_is_given_back(tmp_path: Path) -> None:
    run = told_run(tmp_path)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "launch", "watch", "told", "--root", str(tmp_path)]
    process = subprocess.Popen(
        [*command, "--every", "0.2"],
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    os.close(theirs)
    try:
        seen = _until(ours, b"steps 1 to 60", b"")
        assert seen.startswith(b"\x1b[?1049h")
        append_line(run.metrics, {"kind": "step", "step": 61, "loss": 1.25})
        seen = _until(ours, b"steps 1 to 61", b"")
        process.send_signal(signal.SIGINT)
        seen = _until(ours, b"\x1b[?1049l", seen)
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until(descriptor: int, expected: bytes, seen: bytes) -> bytes:
    over = time.monotonic() + WAIT_S
    while expected not in seen:
        assert time.monotonic() < over, seen
        if select.select([descriptor], [], [], 1.0)[0]:
            seen += os.read(descriptor, 65536)
    return seen
