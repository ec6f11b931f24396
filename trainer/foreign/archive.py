"""A `.pt` archive: what is in it and where, without unpacking anything. Standard library.

torch stores its members uncompressed, so every tensor is a range of the file and nothing can grow
when it is read: compressed members are refused. All sizes are compared with the file's own before
anything of that size is made.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import IO, Any, cast

from trainer.foreign.inert import BYTES_OF, Forbidden, Pairs, Record, Tensor
from trainer.foreign.unpickle import read_pickle

PICKLE_LIMIT = 128 << 20
_NODES, _NODES_PER_BYTE = 100_000, 8  # a table says some things twice, never a thousand times
_DEPTH = 64
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_SIGNATURE = b"PK\x03\x04"


class Window:
    """Bytes [start, stop) of an open file, as a file. Only what zipfile needs."""

    def __init__(self, descriptor: int, start: int, stop: int) -> None:
        self._descriptor = descriptor
        self._start = start
        self._size = stop - start
        self._at = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        at = offset + {0: 0, 1: self._at, 2: self._size}[whence]
        if at < 0:
            raise OSError(22, "before the beginning")
        self._at = at
        return at

    def read(self, count: int = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if count < 0 else min(count, left)
        data = bytearray()
        while len(data) < count:
            got = os.pread(self._descriptor, count - len(data), self._start + self._at + len(data))
            if not got:
                break
            data += got
        self._at += len(data)
        return bytes(data)


@dataclass(frozen=True)
class Member:
    """Where a member's bytes lie in the whole file."""

    offset: int
    size: int


def read_archive(descriptor: int, start: int, stop: int) -> Any:
    """The archive's pickle as JSON, tensors as {"t": [offset, dtype, shape]}. Raises: Forbidden."""
    members = _members(descriptor, start, stop)
    tops = {name.partition("/")[0] for name in members}
    if len(tops) != 1:
        raise Forbidden("its members do not lie in one folder")
    (top,) = tops
    if f"{top}/data.pkl" not in members:
        raise Forbidden("it has no data.pkl: this is no file that torch.save wrote")
    order = members.get(f"{top}/byteorder")
    if order is not None and _bytes(descriptor, order) != b"little":
        raise Forbidden("its numbers are not little-endian")
    pickled = members[f"{top}/data.pkl"]
    if pickled.size > PICKLE_LIMIT:
        raise Forbidden(f"its table takes {pickled.size:,} bytes, more than {PICKLE_LIMIT:,}")
    table = _bytes(descriptor, pickled)
    storages = {name.removeprefix(f"{top}/data/"): member for name, member in members.items()}
    return as_json(read_pickle(table), storages, most=_most(table))


def read_bare(descriptor: int, start: int, stop: int) -> Any:
    """A pickle without an archive around it (torch's `.metadata`). Raises: Forbidden."""
    if stop - start > PICKLE_LIMIT:
        raise Forbidden(f"it takes {stop - start:,} bytes, more than {PICKLE_LIMIT:,}")
    data = _bytes(descriptor, Member(start, stop - start))
    return as_json(read_pickle(data), {}, most=_most(data))


def _most(table: bytes) -> int:
    return _NODES + _NODES_PER_BYTE * len(table)


def _members(descriptor: int, start: int, stop: int) -> dict[str, Member]:
    window = Window(descriptor, start, stop)
    if window.read(4) != _SIGNATURE:
        raise Forbidden("it is no archive as torch.save has written since version 1.6")
    try:
        with zipfile.ZipFile(cast(IO[bytes], window)) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, struct.error, NotImplementedError) as e:
        raise Forbidden(f"it is a broken archive ({str(e)[:80]})") from e
    found: dict[str, Member] = {}
    for entry in entries:
        _check_name(entry.filename)
        if entry.filename in found:
            raise Forbidden(f"it has {entry.filename[:80]!r} twice")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Forbidden(f"{entry.filename[:80]!r} is compressed or encrypted in it")
        if entry.file_size != entry.compress_size:
            raise Forbidden(f"{entry.filename[:80]!r} has two sizes in it")
        found[entry.filename] = _located(window, entry, start=start, stop=stop)
    _check_apart(found)
    return found


def _check_name(name: str) -> None:
    parts = name.split("/")
    wrong = name.startswith("/") or "\\" in name or ".." in parts or not name.isprintable()
    if wrong or len(name) > 512 or "" in parts or len(parts) < 2:
        raise Forbidden(f"it has a member named {name[:80]!r}")


def _located(window: Window, entry: zipfile.ZipInfo, *, start: int, stop: int) -> Member:
    window.seek(entry.header_offset)
    fields = window.read(_LOCAL.size)
    if len(fields) != _LOCAL.size or fields[:4] != _SIGNATURE:
        raise Forbidden(f"{entry.filename[:80]!r} is not where the archive says")
    name_length, extra_length = _LOCAL.unpack(fields)[-2:]
    if window.read(name_length) != entry.filename.encode("utf-8", "surrogateescape"):
        raise Forbidden(f"{entry.filename[:80]!r} has two names in it")
    offset = start + entry.header_offset + _LOCAL.size + name_length + extra_length
    if offset + entry.file_size > stop:
        raise Forbidden(f"{entry.filename[:80]!r} goes on beyond the file's end")
    return Member(offset, entry.file_size)


def _check_apart(members: dict[str, Member]) -> None:
    """Members that lie on top of each other are how a small archive becomes a large one."""
    used = sorted((m.offset, m.offset + m.size) for m in members.values() if m.size)
    if any(a[1] > b[0] for a, b in pairwise(used)):
        raise Forbidden("two of its members lie on top of each other")


def _bytes(descriptor: int, member: Member) -> bytes:
    return Window(descriptor, member.offset, member.offset + member.size).read()


# --- as JSON ------------------------------------------------------------------------------------


def as_json(tree: Any, storages: dict[str, Member], *, most: int) -> Any:
    """Plain data. Raises: Forbidden for more than `most` things, too deep, a tensor not all there.

    Pickles may say one thing many times; written out, that can be more than any memory holds.
    """
    return _Writer(storages, most).value(tree, 0)


@dataclass
class _Writer:
    storages: dict[str, Member]
    left: int

    def value(self, tree: Any, depth: int) -> Any:
        self.left -= 1 + (len(tree) >> 6 if isinstance(tree, str) else 0)
        if self.left < 0:
            raise Forbidden("it says far more things than it has room for")
        if depth > _DEPTH:
            raise Forbidden("it goes round in a circle, or too deep")
        if tree is None or isinstance(tree, bool | float | str):
            return tree
        if isinstance(tree, int):
            if tree.bit_length() > 64:
                raise Forbidden("it has a number of more than 64 bits")
            return tree
        if isinstance(tree, list | tuple):
            return list(self._all(tree, depth))
        if isinstance(tree, Pairs):
            return {"m": [list(self._all(pair, depth)) for pair in tree.items]}
        if isinstance(tree, Tensor):
            return {"t": self._tensor(tree)}
        if isinstance(tree, Record):
            inside = list(self._all((tree.arguments, tree.state), depth))
            return {"o": [tree.name, *inside]}
        return {"x": type(tree).__name__}  # names and bytes: of no use to anybody

    def _all(self, items: Any, depth: int) -> Iterator[Any]:
        return (self.value(item, depth + 1) for item in items)

    def _tensor(self, tensor: Tensor) -> list[Any]:
        member = self.storages.get(tensor.storage.key)
        if member is None:
            raise Forbidden(f"it has a tensor in {tensor.storage.key!r}, which it has not")
        count = 1
        for dim in tensor.shape:
            count *= dim
        if member.size < tensor.storage.count * (
            1 if tensor.storage.dtype != tensor.dtype else BYTES_OF[tensor.dtype]
        ):
            raise Forbidden(f"data/{tensor.storage.key} is smaller than it says")
        first = tensor.offset * BYTES_OF[tensor.dtype]
        if first + count * BYTES_OF[tensor.dtype] > member.size:
            raise Forbidden(f"it has a tensor that goes on beyond data/{tensor.storage.key}")
        return [member.offset + first, tensor.dtype, list(tensor.shape)]
