"""Checksums of chunks. The algorithm's name stands in every rank file's header.

crc32c (Castagnoli) by google-crc32c's C code: 9.8 GB/s on one core, free next to a disk. Where
that code is missing, files are written with zlib's crc32, which is another polynomial and
therefore another name; crc32c files are then still read, by a table, slowly and correctly.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable

from trainer.storage.local import Bytes

Checksum = Callable[[Bytes, int], int]  # (data, checksum so far) -> checksum; starts from 0


def _table() -> tuple[int, ...]:
    rows = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        rows.append(value)
    return tuple(rows)


_TABLE = _table()


def crc32c_by_table(data: Bytes, start: int = 0) -> int:
    """Source: RFC 3720, appendix B.4; reflected polynomial 0x82F63B78. About 10 MB/s."""
    crc = start ^ 0xFFFFFFFF
    for byte in data.tobytes():
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _zlib_crc32(data: Bytes, start: int) -> int:
    return zlib.crc32(data.data, start)


def _fast_crc32c() -> Checksum | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # it warns that it has no C code
            import google_crc32c
    except ImportError:
        return None
    if google_crc32c.implementation != "c":
        return None
    extend = google_crc32c.extend

    # The library takes arrays but not writable memoryviews (1.9.0).
    def checksum(data: Bytes, start: int) -> int:
        return int(extend(start, data))

    return checksum


_FAST = _fast_crc32c()
ALGORITHMS: dict[str, Checksum] = {"crc32c": _FAST or crc32c_by_table, "crc32": _zlib_crc32}
DEFAULT = "crc32c" if _FAST else "crc32"
