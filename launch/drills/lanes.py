"""Two lanes of the bench: while some drills mostly wait, others use the core that is left.

    waits   most of its time nothing computes
    aside   one core is enough, and nothing in it is held against seconds

What goes aside is a process of its own with a folder of its own, and gives way to what is here; all
other drills have the machine to themselves.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from launch.drills.bench import Drill
from launch.node.processes import die_with_parent
from trainer.errors import Exit

_NICE = ["nice", "-n", "5"]
_SETTLE_S = 30.0  # it ends its runs first


def lanes(wanted: Sequence[Drill]) -> tuple[list[Drill], list[Drill]]:
    """What is done here, those that wait first, and what goes beside these; all, if none waits."""
    waiting = [drill for drill in wanted if drill.pace == "waits"]
    aside = [drill for drill in wanted if drill.pace == "aside"] if waiting else []
    rest = [drill for drill in wanted if drill not in waiting and drill not in aside]
    return waiting + rest, aside


class Aside:
    """Another process of the bench, with these drills; none is over at once.

    It writes its results where this one does (`write`), and prints as this one does.
    """

    def __init__(self, drills: Sequence[Drill], *options: str, write: Path | None) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        if drills:
            labels = [drill.label for drill in drills]
            options += ("--write", str(write)) if write is not None else ()
            argv = [*_NICE, sys.executable, "-m", "launch.drills", *labels, *options]
            self._process = subprocess.Popen(argv, preexec_fn=die_with_parent())

    def wait(self) -> bool:
        """Until it is over; whether all its drills held."""
        return self._process is None or self._process.wait() == Exit.DONE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """What is still going on when the bench ends, ends too."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(_SETTLE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
