"""Whether the kernel's clock is kept right by somebody. How far clocks are apart, the ranks see."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from trainer.health.finding import Facts, Finding, Needs

_STRUCT_BYTES = 256  # struct timex has 208 on 64-bit Linux
_ERRORS_AT = 24  # maxerror, esterror: long, microseconds
_TIME_ERROR = 5  # what adjtimex(2) answers for a clock that nobody synchronises


def gather_clock() -> dict[str, Any]:
    """`synchronised` None: the kernel does not say."""
    try:
        timex = ctypes.create_string_buffer(_STRUCT_BYTES)  # modes = 0: only asks
        state = ctypes.CDLL(None, use_errno=True).adjtimex(timex)
    except (OSError, AttributeError):
        state = -1
    if state < 0:
        return {"synchronised": None, "max_error_s": None}
    (max_error_us,) = struct.unpack_from("<q", timex, _ERRORS_AT)
    return {"synchronised": state != _TIME_ERROR, "max_error_s": max_error_us / 1e6}


def judge_clock(facts: Facts, needs: Needs) -> Finding:
    name = "clock kept right"
    if facts["synchronised"] is None:
        return Finding(name, "the kernel does not say")
    if facts["synchronised"]:
        return Finding(name, f"to {facts['max_error_s'] * 1e3:.0f} ms")
    if needs.nodes == 1:
        return Finding(name, "by nobody (one machine: does no harm)")
    return Finding(name, "by nobody", "warn", "start chronyd or systemd-timesyncd")
