"""Memory that a CPU rank frees comes back without page faults."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A block of 96 MB taken, written and freed again and again; the faults of all but the first time.
_SCRIPT = """
import ctypes, resource, sys
from trainer.dist.host_memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    sys.exit("not glibc")
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def take():
    block = libc.malloc(96_000_000)
    ctypes.memset(block, 1, 96_000_000)
    libc.free(block)
take()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    take()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, mode], capture_output=True, text=True, timeout=300
    )
    if "not glibc" in done.stderr:
        pytest.skip("only glibc has the setting")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_freed_memory_is_taken_again_without_a_page_fault() -> None:
    assert page_faults("keep") < 100
    assert page_faults("default") > 1000, "the test would not notice if nothing were kept"
