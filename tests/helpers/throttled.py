"""A process that is stopped and let go on in turns, as a CPU quota does it."""

from __future__ import annotations


def throttled(*, stopped_s: float, running_s: float, once: str) -> str:
    """A program for `python -c PROGRAM PID`; it ends with that process.

    `once`: it begins when there is a file that this pattern matches; imports need not be slow.
    """
    return f"""
import glob, os, signal, sys, time
pid = int(sys.argv[1])
try:
    while os.getppid() == pid and not glob.glob({once!r}, recursive=True, include_hidden=True):
        time.sleep(0.005)
    while os.getppid() == pid:
        os.kill(pid, signal.SIGSTOP)
        time.sleep({stopped_s})
        os.kill(pid, signal.SIGCONT)
        time.sleep({running_s})
except ProcessLookupError:
    pass
"""
