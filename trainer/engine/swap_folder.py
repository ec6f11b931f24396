"""A rank's own folder for swap files, gone with the rank: by itself, or by the next that comes.

    engine.nvme_path                  the user's; several runs may share it
        longhaul-swap-1000.lock       of one user; held while folders are made and swept
        longhaul-swap-rank1-k3x9/     mode 0700, of one rank of one attempt
            lock                      held for as long as the rank lives
            zero_stage_3/...          DeepSpeed's

Nothing in it outlives its rank: masters and moments are saved in checkpoints.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ConfigError, Problem

_PREFIX = "longhaul-swap-"


class SwapFolder:
    """Made at once; `remove` it at the end. A killed rank's is removed by the next rank here."""

    def __init__(self, place: str, *, rank: int) -> None:
        """Raises: ConfigError if `place` is no folder in which one can be made."""
        root = Path(place)
        try:
            with _locked(root):
                for old in root.glob(f"{_PREFIX}rank*"):
                    _remove_if_dead(old)
                self.path = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}rank{rank}-", dir=root))
                self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as e:
            what = f"no swap files can be written in {place}: {e.strerror}"
            raise ConfigError(
                [Problem("engine.nvme_path", what, "a folder on a local disk")]
            ) from e

    def remove(self) -> None:
        """Give the space back. Doing it again changes nothing."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    """Nobody else makes or sweeps folders here. Raises: OSError."""
    lock = os.open(root / f"{_PREFIX}{os.getuid()}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _remove_if_dead(folder: Path) -> None:
    """A rank that lives holds its lock; the system lets go of a dead one's."""
    try:
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # another user's
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
