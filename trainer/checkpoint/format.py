"""One rank's file: a safetensors container that any safetensors library opens.

    8 bytes   length of the header, little-endian
    header    JSON, padded with spaces so that the data starts at a multiple of 4096
    data      fp32 little-endian, fragment after fragment, no gaps

The header's entries are the fragment table: the key "KIND:START:NAME" with shape [n] says that
these are elements [START, START + n) of the flattened tensor NAME. `__metadata__` holds the whole
shapes and one checksum for each chunk of the data. A header's length depends on the table alone,
so data is written first, in one stream, and the header with its checksums after it.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from trainer.checkpoint.checksum import ALGORITHMS
from trainer.errors import DamagedCheckpoint
from trainer.records.fragment import Fragment

ELEMENT_BYTES = 4
CHUNK_BYTES = 1 << 20
HEADER_LIMIT_BYTES = 100 << 20  # the safetensors library's own
_ALIGN = 4096
_CHUNKS_ALLOWED = range(64, (64 << 20) + 1)
_FORMAT_NAME = "longhaul-rank-file"
_KEY = re.compile(r"([A-Za-z0-9_.-]{1,64}):(\d{1,16}):(.+)", re.DOTALL)


@dataclass(frozen=True)
class Identity:
    """Which file of which save this is; a file of another step or rank is told by it."""

    step: int
    rank: int
    world_size: int


@dataclass(frozen=True)
class Piece:
    """Elements [start, stop) of a flat tensor, at byte `offset` of the file's data."""

    start: int
    stop: int
    offset: int


@dataclass(frozen=True)
class Header:
    """A checked header. `data_start` and `data_bytes` locate the data in the file."""

    identity: Identity
    algorithm: str
    chunk_bytes: int
    checksums: tuple[int, ...]
    shapes: Mapping[str, tuple[int, ...]]
    pieces: Mapping[tuple[str, str], Sequence[Piece]]  # (name, kind) -> by start
    data_start: int
    data_bytes: int

    def overlapping(self, name: str, kind: str, start: int, stop: int) -> Sequence[Piece]:
        """The stored pieces that share an element with [start, stop), by start."""
        pieces = self.pieces.get((name, kind), ())
        first = bisect.bisect_right(pieces, start, key=lambda p: p.stop)
        last = bisect.bisect_left(pieces, stop, key=lambda p: p.start)
        return pieces[first:last]


def num_chunks(data_bytes: int, chunk_bytes: int) -> int:
    return -(-data_bytes // chunk_bytes)


def data_bytes_of(fragments: Sequence[Fragment]) -> int:
    return sum(f.length for f in fragments) * ELEMENT_BYTES


def encode_header(
    identity: Identity,
    fragments: Sequence[Fragment],
    *,
    algorithm: str,
    chunk_bytes: int,
    checksums: Sequence[int],
    at_least: int = 0,
) -> bytes:
    """The file's bytes before its data; their number does not depend on the checksums' values.

    `at_least`: so many, for data whose place was chosen before its step was known.
    """
    table: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT_NAME,
            "step": f"{identity.step}",
            "rank": f"{identity.rank}",
            "world_size": f"{identity.world_size}",
            "checksum": algorithm,
            "chunk_bytes": f"{chunk_bytes}",
            "chunks": "".join(f"{value:08x}" for value in checksums),
            "shapes": json.dumps({f.name: f.shape for f in fragments}, separators=(",", ":")),
        }
    }
    offset = 0
    for f in fragments:
        end = offset + f.length * ELEMENT_BYTES
        entry = {"dtype": "F32", "shape": [f.length], "data_offsets": [offset, end]}
        table[f"{f.kind}:{f.start}:{f.name}"] = entry
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text = text.ljust(max(at_least, -(-(len(text) + 8) // _ALIGN) * _ALIGN) - 8)
    return len(text).to_bytes(8, "little") + text


def digest_of(header: bytes) -> str:
    """What the manifest states of a file. It covers the header, whose checksums cover the data."""
    return hashlib.sha256(header).hexdigest()[:32]


def decode_header(header: bytes, *, file: str, size: int) -> Header:
    """Check and understand the bytes before the data; `size` is the whole file's.

    Raises: DamagedCheckpoint.
    """
    try:
        table = json.loads(header[8:])
        meta = table.pop("__metadata__")
        if meta["format"] != _FORMAT_NAME or meta["checksum"] not in ALGORITHMS:
            _refuse(file, f"format {meta['format']!r}, checksum {meta['checksum']!r}")
        chunk_bytes, chunks = int(meta["chunk_bytes"]), meta["chunks"]
        checksums = tuple(int(chunks[i : i + 8], 16) for i in range(0, len(chunks), 8))
        identity = Identity(int(meta["step"]), int(meta["rank"]), int(meta["world_size"]))
        shapes = {n: tuple(int(d) for d in s) for n, s in json.loads(meta["shapes"]).items()}
        pieces, data_bytes = _pieces(table, file)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise DamagedCheckpoint(f"{file}: the header cannot be understood ({e!r})") from e
    if chunk_bytes not in _CHUNKS_ALLOWED or chunk_bytes % ELEMENT_BYTES:
        _refuse(file, f"chunks of {chunk_bytes} bytes")
    if len(checksums) != num_chunks(data_bytes, chunk_bytes) or len(chunks) != 8 * len(checksums):
        _refuse(file, f"{len(checksums)} checksums for {data_bytes} bytes of data")
    if len(header) + data_bytes != size:
        _refuse(file, f"{size} bytes, but its header speaks of {len(header) + data_bytes}")
    if not {name for name, _ in pieces} <= shapes.keys():
        _refuse(file, "a fragment without a shape")
    algorithm = meta["checksum"]
    return Header(
        identity, algorithm, chunk_bytes, checksums, shapes, pieces, len(header), data_bytes
    )


def _pieces(table: Mapping[str, Any], file: str) -> tuple[dict[tuple[str, str], list[Piece]], int]:
    """The fragments by tensor and kind, and where the last one ends."""
    found: dict[tuple[str, str], list[Piece]] = {}
    end = 0
    for key, entry in sorted(table.items(), key=lambda item: item[1]["data_offsets"]):
        match = _KEY.fullmatch(key)
        (length,), (first, last) = entry["shape"], entry["data_offsets"]
        if match is None or entry["dtype"] != "F32" or type(length) is not int or length < 1:
            _refuse(file, f"entry {key[:80]!r}")
        if first != end or last != end + length * ELEMENT_BYTES:
            _refuse(file, f"entry {key[:80]!r} lies at bytes {first} to {last}")
        start = int(match[2])
        found.setdefault((match[3], match[1]), []).append(Piece(start, start + length, end))
        end = last
    for (name, kind), pieces in found.items():
        pieces.sort(key=lambda p: p.start)
        if any(a.stop > b.start for a, b in itertools.pairwise(pieces)):
            _refuse(file, f"two fragments of {kind} of {name} overlap")
    return found, end


def _refuse(file: str, what: str) -> NoReturn:
    raise DamagedCheckpoint(f"{file}: {what}")
