"""A rank that cannot upload its file says so in the run folder, and rank 0 waits for it no longer.

Rank 0's upload process waits beside training, in no collective; the folder is what they share.
"""

from __future__ import annotations

import contextlib

from trainer.records.run_files import AttemptFiles


def note_failure(attempt: AttemptFiles, step: int, *, rank: int) -> None:
    """Where that fails too, rank 0 waits until its time is up."""
    with contextlib.suppress(OSError):
        folder = attempt.upload_failures
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / f"step-{step:08d}.rank-{rank:05d}").touch(mode=0o600)


def failure_of(attempt: AttemptFiles, step: int) -> str:
    """Why nobody need wait for this step; "" while all ranks may still come."""
    with contextlib.suppress(OSError):
        found = sorted(attempt.upload_failures.glob(f"step-{step:08d}.rank-*"))
        if found:
            rank = int(found[0].name.rpartition("-")[2])
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"rank {rank}{others} could not send its file; that rank's log says why"
    return ""
