"""One process a rank: known before anything heavy is imported."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from trainer.errors import NotAdmitted


def claim_rank(attempt: Path, rank: int) -> None:
    """Hold the rank's place in the attempt's folder for as long as this process lives.

    Raises: NotAdmitted if another process holds it; OSError if the folder cannot be written.
    """
    descriptor = os.open(attempt / f"rank-{rank:05d}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel gives it up with us
    except BlockingIOError:
        os.close(descriptor)
        raise NotAdmitted(
            f"two processes want to be rank {rank} of {attempt}; the second is turned away"
        ) from None
