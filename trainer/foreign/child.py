"""The process that reads a foreign file. It can read that one file and write its answer.

    python -I -S -c "..." DESCRIPTOR       (started by sandbox.py, with an empty environment)

Before the first byte is read: no core, little memory, little time, no larger file, few descriptors,
no new privileges, and where the kernel lets us no network and no other file. What it could not give
up stands in its answer. Standard library only: nothing else can even be imported here.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import resource
import sys
from typing import Any

from trainer.foreign.archive import read_archive, read_bare
from trainer.foreign.inert import Forbidden

_ENCODINGS = ("cp437", "ascii", "latin-1", "utf-8", "unicode_escape", "raw_unicode_escape")
_MEMORY_BYTES = 2 << 30
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_PDEATHSIG = 4, 38, 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_ALL_OF_LANDLOCK_1 = (1 << 13) - 1  # every way to reach a file that its first version knows


def main() -> None:
    descriptor, cpu_s = int(sys.argv[1]), int(sys.argv[2])
    for name in _ENCODINGS:  # Python loads them from files, which cannot be opened later
        codecs.lookup(name)
    given: dict[str, Any] = {"missing": restrict(cpu_s)}
    try:
        given["answers"] = answers(descriptor, json.loads(sys.stdin.buffer.read()))
    except Forbidden as e:
        given["refused"] = str(e)
    except (MemoryError, RecursionError):
        given["refused"] = "it takes more memory than a table of tensors may"
    sys.stdout.write(json.dumps(given))
    sys.stdout.flush()


def answers(descriptor: int, ranges: list[Any]) -> list[Any]:
    """One answer a range; a range without an end is the whole file. Raises: Forbidden."""
    size = os.fstat(descriptor).st_size
    found = []
    for kind, start, stop in ranges:
        end = size if stop is None else stop
        if not 0 <= start <= end <= size:
            raise Forbidden(f"it has {size:,} bytes, and should have some at {start:,}-{end:,}")
        read = read_bare if kind == "bare" else read_archive
        found.append(read(descriptor, start, end))
    return found


def restrict(cpu_s: int) -> list[str]:
    """Give up what is not needed. Returns what could not be given up, in words."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, 9)
    libc.prctl(_PR_SET_DUMPABLE, 0)
    missing = []
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) and libc.unshare(_CLONE_NEWNET):
        missing.append(f"the network ({os.strerror(ctypes.get_errno())})")
    for what, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CPU, cpu_s),
        (resource.RLIMIT_AS, _MEMORY_BYTES),
    ):
        resource.setrlimit(what, (limit, limit))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing.append(f"new privileges ({os.strerror(ctypes.get_errno())})")
    if problem := _no_more_files(libc):
        missing.append(f"other files ({problem})")
    return missing


def _no_more_files(libc: ctypes.CDLL) -> str:
    """Landlock with an empty list of rules: no file can be opened any more."""
    handled = ctypes.c_uint64(_ALL_OF_LANDLOCK_1)
    size = ctypes.c_size_t(ctypes.sizeof(handled))
    rules = libc.syscall(_LANDLOCK_CREATE, ctypes.byref(handled), size, 0)
    if rules < 0:
        return os.strerror(ctypes.get_errno())
    failed = libc.syscall(_LANDLOCK_RESTRICT, rules, 0)
    problem = os.strerror(ctypes.get_errno()) if failed else ""
    os.close(rules)
    return problem


if __name__ == "__main__":
    main()
