"""The folders that W&B's client leaves in a run folder: one an attempt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"(offline-run|run)-\d{8}_\d{6}-[^/]+")


@dataclass(frozen=True)
class Fragment:
    """`log`: its .wandb file. Names sort by the time at which they began."""

    folder: Path
    log: Path

    @property
    def is_online(self) -> bool:
        """Begun with a server; what it was not told before a kill lies in the log all the same."""
        return self.folder.name.startswith("run-")

    @property
    def is_synced(self) -> bool:
        """The client's own mark, beside the log; its exit code says nothing."""
        return self.log.with_name(f"{self.log.name}.synced").exists()

    @property
    def began(self) -> str:
        return self.folder.name.removeprefix("offline-").removeprefix("run-")


def fragments(folder: Path) -> list[Fragment]:
    """In the order of their beginnings; `folder` need not be there. Links are left out."""
    found = []
    for one in folder.iterdir() if folder.is_dir() else ():
        logs = sorted(one.glob("*.wandb")) if _NAME.fullmatch(one.name) else []
        if logs and not one.is_symlink():
            found.append(Fragment(one, logs[0]))
    return sorted(found, key=lambda fragment: fragment.began)
