"""A rank that cannot upload its file says so in the run folder, and the others wait no longer.

Rank 0's upload process waits beside training, in no collective; the folder is what they share.
"""

from __future__ import annotations

import contextlib

from trainer.records.run_files import AttemptFiles


def note_failure(attempt: AttemptFiles, step: int, *, rank: int) -> None:
    """Where that fails too, the others wait until their time is up."""
    with contextlib.suppress(OSError):
        folder = attempt.upload_failures
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / f"step-{step:08d}.rank-{rank:05d}").touch(mode=0o600)


def forget_failures(attempt: AttemptFiles, step: int) -> None:
    """Before a step is sent again: the run went back to before it, and made it anew."""
    with contextlib.suppress(OSError):
        for note in attempt.upload_failures.glob(f"step-{step:08d}.rank-*"):
            note.unlink(missing_ok=True)


def failure_of(attempt: AttemptFiles, step: int) -> str:
    """Why nobody need wait for this step; "" while all ranks may still come."""
    with contextlib.suppress(OSError):
        found = sorted(attempt.upload_failures.glob(f"step-{step:08d}.rank-*"))
        if found:
            rank = int(found[0].name.rpartition("-")[2])
            others = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"rank {rank}{others} could not send its file; that rank's log says why"
    return ""
