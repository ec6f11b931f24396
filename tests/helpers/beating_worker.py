"""A rank without torch that beats through ten steps; in attempt 1, rank 1 stands still in step 4.

Run as `python -m tests.helpers.beating_worker RUN_FOLDER --attempt N`; how it stands still is in
FAKE_HANG: sleep, spin, gil (C code that keeps the interpreter), stop; nothing: it does not.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path

from trainer.dist.startup import StartUp
from trainer.errors import Exit
from trainer.records.attempt import Done, Started, write_record
from trainer.records.run_files import RunFiles

STEPS, HANGS_AT = 10, 4


def main() -> int:
    startup = StartUp()
    files = RunFiles(Path(sys.argv[1])).attempt(int(sys.argv[3]))
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    for name in ("python", "imports", "meet", "build", "load"):
        startup.lap(name)
    if rank == 0:
        write_record(files.started, Started(time.time(), 0, size, socket.gethostname()))
    for step in range(1, STEPS + 1):
        startup.pulse.beat("forward", step)
        time.sleep(0.02)
        if (files.number, rank, step) == (1, 1, HANGS_AT):
            (files.root / "hangs").write_text(str(time.time()))
            stand_still(os.environ.get("FAKE_HANG", ""))
        startup.pulse.beat("agree", step)
        wait_for_all(files.root, rank, size, step)
        startup.pulse.beat("update", step)
    startup.pulse.beat("end", STEPS)
    if rank == 0:
        write_record(files.done, Done(time.time(), STEPS, 1.5))
    return Exit.DONE


def stand_still(how: str) -> None:
    if how == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    while how in ("sleep", "gil", "spin"):
        if how == "sleep":
            time.sleep(60)
        elif how == "gil":
            ctypes.PyDLL(None).sleep(60)  # a signal, as that for its stacks, ends it early


def wait_for_all(folder: Path, rank: int, size: int, step: int) -> None:
    """The collective of this world."""
    (folder / f"at-{step}-{rank}").touch()
    while not all((folder / f"at-{step}-{r}").exists() for r in range(size)):
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
