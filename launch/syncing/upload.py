"""One fragment to the server, by W&B's own command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from launch.syncing.fragments import Fragment
from trainer.errors import LonghaulError


class NotSynced(LonghaulError):
    """The server was not told; the files are as they were."""


def upload(fragment: Fragment, *, time_out_s: float) -> None:
    """Raises: NotSynced. The key is W&B's business: its environment variable, or `wandb login`."""
    argv = [sys.executable, "-m", "wandb", "sync"]
    argv += ["--include-online"] if fragment.is_online else []
    try:
        done = subprocess.run(
            [*argv, str(fragment.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=time_out_s,
            # Its own logs: beside the fragments, not in a folder wandb/ of wherever it was typed.
            env=os.environ | {"WANDB_DIR": str(fragment.folder.parent.parent)},
        )
    except subprocess.TimeoutExpired:
        name, spent = fragment.folder.name, f"{time_out_s:.0f} s"
        raise NotSynced(f"{name}: W&B took longer than {spent}; --time-out gives it more") from None
    if not fragment.is_synced:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        said = lines[-1] if lines else f"exit code {done.returncode}"
        raise NotSynced(f"{fragment.folder.name}: W&B was not told: {said}")
