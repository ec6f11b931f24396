"""A disk in memory that can fail at the n-th operation, lose its power, and be looked at after.

What a power loss may leave, per folder: the names as they were after any operation since the
folder's last fsync; per file: what was fsynced, all that was written, or that with the second half
of the last write missing. Every combination is handed out (folders and files independently of each
other), so a missing fsync shows as a state in which something is lost. Files under a name that
`ignored` says no reader looks at are not told apart: all as fsynced, or all as written.
Not modelled: a rename between folders torn in two.
"""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from trainer.storage.local import Bytes


class Killed(BaseException):
    """The process is gone: nothing of it runs any more, also no tidying up."""


@dataclass
class File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytes = b""
    torn: bytes | None = None  # the last write half done

    def may_be(self) -> list[bytes]:
        """What a power loss may leave of it, each content once."""
        found = [self.synced, bytes(self.data), *([self.torn] if self.torn is not None else [])]
        return list(dict.fromkeys(found))


@dataclass
class Folder:
    names: dict[str, File | Folder] = field(default_factory=dict)
    since_fsync: list[dict[str, File | Folder]] = field(default_factory=list)

    def changed(self) -> None:
        self.since_fsync.append(dict(self.names))


class Disk:
    """One disk that several ranks' storages share. Its root folder is durable from the start."""

    def __init__(self, root: Folder | None = None) -> None:
        self.root = root or Folder(since_fsync=[{}])
        self.lock = threading.RLock()

    def after_power_loss(
        self, ignored: Callable[[str], bool] = lambda name: False
    ) -> Iterator[Disk]:
        """Every state in which the disk may be found."""
        folders = list(_folders(self.root))
        seen: set[str] = set()
        for picked in itertools.product(*(range(len(f.since_fsync)) for f in folders)):
            chosen = dict(zip(map(id, folders), picked, strict=True))
            told_apart, together = _files(self.root, chosen, ignored)
            for synced in (True, False) if together else (True,):
                fixed = {id(f): f.synced if synced else bytes(f.data) for f in together}
                for contents in itertools.product(*(f.may_be() for f in told_apart)):
                    content = dict(zip(map(id, told_apart), contents, strict=True)) | fixed
                    root = _left(self.root, chosen, content)
                    if (mark := repr(_marked(root))) not in seen:
                        seen.add(mark)
                        yield Disk(root)

    def find(self, path: Path) -> File | Folder:
        node: File | Folder = self.root
        for part in path.parts[1:]:
            if not isinstance(node, Folder) or part not in node.names:
                raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(path))
            node = node.names[part]
        return node

    def folder(self, path: Path) -> Folder:
        node = self.find(path)
        if not isinstance(node, Folder):
            raise NotADirectoryError(errno.ENOTDIR, "Not a directory", str(path))
        return node

    def file(self, path: Path) -> File:
        node = self.find(path)
        if not isinstance(node, File):
            raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))
        return node


class DiskStorage:
    """Storage of one process on a disk. `before(number, verb, path)` runs ahead of each operation
    that changes something, and raises what the operation shall fail with.
    """

    def __init__(
        self, disk: Disk, before: Callable[[int, str, Path], None] = lambda n, v, p: None
    ) -> None:
        self.disk = disk
        self.before = before
        self.operations: list[tuple[str, Path]] = []
        self.opened: list[Path] = []
        self.bytes_read = 0

    def changing(self, verb: str, path: Path) -> None:
        self.before(len(self.operations), verb, path)
        self.operations.append((verb, path))

    def make_folder(self, path: Path) -> None:
        with self.disk.lock:
            self.changing("make_folder", path)
            # A new folder is durable together with its name, and empty.
            self._add(path, Folder(since_fsync=[{}]))

    def create(self, path: Path, *, size: int) -> _NewFile:
        with self.disk.lock:
            self.changing("create", path)
            file = File(bytearray(size))
            self._add(path, file)
            return _NewFile(self, path, file)

    def open(self, path: Path) -> _StoredFile:
        self.opened.append(path)
        return _StoredFile(self, self.disk.file(path))

    def rename(self, source: Path, target: Path) -> None:
        with self.disk.lock:
            self.changing("rename", source)
            node = self.disk.find(source)
            there = self.disk.folder(target.parent)
            old = there.names.get(target.name)
            if isinstance(old, Folder) and old.names:
                raise OSError(errno.ENOTEMPTY, "Directory not empty", str(target))
            self._drop(source, note=source.parent != target.parent)
            there.names[target.name] = node
            there.changed()

    def fsync_folder(self, path: Path) -> None:
        with self.disk.lock:
            self.changing("fsync_folder", path)
            folder = self.disk.folder(path)
            folder.since_fsync = [dict(folder.names)]

    def remove_file(self, path: Path) -> None:
        with self.disk.lock:
            self.changing("remove_file", path)
            self.disk.file(path)
            self._drop(path)

    def remove_tree(self, path: Path) -> None:
        with self.disk.lock:
            for name in list(self.disk.folder(path).names):
                if isinstance(self.disk.find(path / name), Folder):
                    self.remove_tree(path / name)
                else:
                    self.remove_file(path / name)
            self.changing("remove_folder", path)
            self._drop(path)

    def list(self, path: Path) -> list[str]:
        return sorted(self.disk.folder(path).names)

    def exists(self, path: Path) -> bool:
        try:
            self.disk.find(path)
        except OSError:
            return False
        return True

    def _add(self, path: Path, node: File | Folder) -> None:
        parent = self.disk.folder(path.parent)
        if path.name in parent.names:
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        parent.names[path.name] = node
        parent.changed()

    def _drop(self, path: Path, *, note: bool = True) -> None:
        parent = self.disk.folder(path.parent)
        del parent.names[path.name]
        if note:
            parent.changed()


class _NewFile:
    def __init__(self, storage: DiskStorage, path: Path, file: File) -> None:
        self._storage, self._path, self._file = storage, path, file

    def write(self, offset: int, data: Bytes | bytes) -> None:
        self._storage.changing("write", self._path)
        content = data if isinstance(data, bytes) else data.tobytes()
        room = offset + len(content) - len(self._file.data)
        self._file.data.extend(bytes(max(room, 0)))
        half = len(content) // 2
        self._file.data[offset : offset + half] = content[:half]
        self._file.torn = bytes(self._file.data)
        self._file.data[offset : offset + len(content)] = content

    def fsync(self) -> None:
        self._storage.changing("fsync", self._path)
        self._file.synced = bytes(self._file.data)
        self._file.torn = None

    def close(self) -> None:
        return

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class _StoredFile:
    def __init__(self, storage: DiskStorage, file: File) -> None:
        self._storage, self._file = storage, file
        self.size = len(file.data)

    def read_into(self, offset: int, out: Bytes) -> int:
        part = bytes(self._file.data[offset : offset + len(out)])
        out[: len(part)] = np.frombuffer(part, dtype=np.uint8)
        self._storage.bytes_read += len(part)
        return len(part)

    def close(self) -> None:
        return


def _folders(folder: Folder) -> Iterator[Folder]:
    yield folder
    children = {id(c): c for names in folder.since_fsync for c in names.values()}
    for child in children.values():
        if isinstance(child, Folder):
            yield from _folders(child)


def _files(
    folder: Folder, chosen: dict[int, int], ignored: Callable[[str], bool], inside: bool = False
) -> tuple[list[File], list[File]]:
    """Files as the folders are chosen: those to be told apart, and those that nobody reads."""
    apart: list[File] = []
    together: list[File] = []
    for name, child in folder.since_fsync[chosen[id(folder)]].items():
        unread = inside or ignored(name)
        if isinstance(child, Folder):
            more = _files(child, chosen, ignored, unread)
            apart += more[0]
            together += more[1]
        else:
            (together if unread else apart).append(child)
    return apart, together


def _left(folder: Folder, chosen: dict[int, int], content: dict[int, bytes]) -> Folder:
    names: dict[str, File | Folder] = {}
    for name, child in folder.since_fsync[chosen[id(folder)]].items():
        if isinstance(child, Folder):
            names[name] = _left(child, chosen, content)
        else:
            data = content[id(child)]
            names[name] = File(bytearray(data), data)
    return Folder(names, [dict(names)])


def _marked(folder: Folder) -> list[object]:
    return [
        (name, _marked(child) if isinstance(child, Folder) else child.synced)
        for name, child in sorted(folder.names.items(), key=lambda item: item[0])
    ]
