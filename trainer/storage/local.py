"""The seam below every checkpoint: a handful of file operations, and the real ones.

Whoever writes or reads a checkpoint holds a `Storage` and touches the disk through nothing else.
A test wraps one to record the order of operations, to fail the n-th, or to forget what was never
fsynced. Nothing here retries, caches or interprets: each call is one thing that can go wrong.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]  # one-dimensional, contiguous
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_SYNC_FILE_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux
_SYNC_FILE_RANGE_WRITE = 2
if _SYNC_FILE_RANGE is not None:
    _SYNC_FILE_RANGE.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
_FSTATFS = getattr(ctypes.CDLL(None), "fstatfs", None) if sys.byteorder == "little" else None
# In larger ones the kernel looks for runs of free pages: up to seven times the CPU, and erratic.
_WRITE_BYTES = 1 << 20
# Past the page cache: a tenth of the CPU, and steady where the cache's own writes are not. Only
# where it is known to be good: ext2 to ext4 and XFS; other file systems have other ideas of it.
_DIRECT_KINDS = (0xEF53, 0x58465342)
_DIRECT_ALIGNMENT = max(4096, mmap.PAGESIZE)
_DIRECT_LEAST_BYTES = 8 << 20  # smaller files: not worth a descriptor
_CALL_BYTES = 1 << 30  # Linux moves at most 2 GiB - 4 KiB in one read or write


class NewFile(Protocol):
    """A file being written. Durable only after `fsync`, and its name after `fsync_folder`."""

    def write(self, offset: int, data: Bytes | bytes) -> None:
        """Write all of `data` at `offset`; threads may write disjoint ranges at once."""

    def fsync(self) -> None: ...
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


class StoredFile(Protocol):
    """A file being read. `size` in bytes, as it was when opened."""

    @property
    def size(self) -> int: ...
    def read_into(self, offset: int, out: Bytes) -> int:
        """Fill `out` from `offset`; returns the bytes read, fewer only at the end of the file."""

    def close(self) -> None: ...


class Storage(Protocol):
    """Raises: OSError and its kinds (FileNotFoundError, FileExistsError, ENOSPC ...), always."""

    def make_folder(self, path: Path) -> None:
        """Create one folder, mode 0700. Raises: FileExistsError."""

    def create(self, path: Path, *, size: int) -> NewFile:
        """Create a file that must not exist, mode 0600, with room for `size` bytes set aside."""

    def open(self, path: Path) -> StoredFile: ...
    def rename(self, source: Path, target: Path) -> None:
        """Atomic. Replaces a file; refuses to replace a folder that is not empty."""

    def fsync_folder(self, path: Path) -> None:
        """Make creations, renames and removals in `path` survive a power loss."""

    def remove_file(self, path: Path) -> None: ...
    def remove_tree(self, path: Path) -> None: ...
    def list(self, path: Path) -> list[str]:
        """Names in a folder, sorted. Raises: FileNotFoundError."""

    def exists(self, path: Path) -> bool: ...


class _NewLocalFile:
    """`direct`: another descriptor of the file, past the page cache; -1: there is none."""

    def __init__(self, descriptor: int, direct: int = -1) -> None:
        self._descriptor = descriptor
        self._direct = direct

    def write(self, offset: int, data: Bytes | bytes) -> None:
        view = memoryview(data) if isinstance(data, bytes) else data.data
        done = self._write_direct(offset, data) if isinstance(data, np.ndarray) else 0
        if done == len(view):
            return
        start = at = offset + done
        left = view[done:]
        while left:
            written = os.pwrite(self._descriptor, left[:_WRITE_BYTES], at)
            left, at = left[written:], at + written
        _begin_writing_back(self._descriptor, start, at - start)

    def _write_direct(self, offset: int, data: Bytes) -> int:
        """How many bytes from the first on were written so: none unless all is aligned."""
        if self._direct < 0 or (data.ctypes.data | offset) % _DIRECT_ALIGNMENT:
            return 0
        whole, done = len(data) - len(data) % _DIRECT_ALIGNMENT, 0
        while done < whole and done % _DIRECT_ALIGNMENT == 0:
            try:
                done += os.pwrite(self._direct, data[done:whole].data, offset + done)
            except OSError as e:
                if e.errno != errno.EINVAL:  # this disk wants another alignment
                    raise
                return done
        return done

    def fsync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        direct, self._direct = self._direct, -1
        descriptor, self._descriptor = self._descriptor, -1
        if direct >= 0:
            os.close(direct)
        if descriptor >= 0:
            os.close(descriptor)  # may raise: some file systems report a failed write only here

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _begin_writing_back(descriptor: int, offset: int, num_bytes: int) -> None:
    """Let the disk start now, not at fsync. It promises nothing, so that it fails is no matter."""
    if _SYNC_FILE_RANGE is not None:
        _SYNC_FILE_RANGE(descriptor, offset, num_bytes, _SYNC_FILE_RANGE_WRITE)


def _direct_descriptor(path: Path, descriptor: int) -> int:
    """The same new file opened past the page cache; -1 where that is not known to be good."""
    if _FSTATFS is None:
        return -1
    said = ctypes.create_string_buffer(256)  # struct statfs, whose first word is the kind
    if _FSTATFS(descriptor, said) or int.from_bytes(said.raw[:8], "little") not in _DIRECT_KINDS:
        return -1
    try:
        direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    if os.path.samestat(os.fstat(direct), os.fstat(descriptor)):
        return direct
    os.close(direct)
    return -1


class _StoredLocalFile:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def read_into(self, offset: int, out: Bytes) -> int:
        view, done = out.data, 0
        while done < len(view):
            got = os.preadv(self._descriptor, [view[done : done + _CALL_BYTES]], offset + done)
            if got == 0:
                break
            done += got
        return done

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class LocalStorage:
    """Files and folders of this machine, or of a file system mounted on it."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def create(self, path: Path, *, size: int) -> NewFile:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if size:
                os.posix_fallocate(descriptor, 0, size)  # a full disk is known before any byte
        except OSError as e:
            if e.errno not in _NO_PREALLOCATION:
                os.close(descriptor)
                raise OSError(e.errno, e.strerror, str(path)) from e
        large = size >= _DIRECT_LEAST_BYTES
        return _NewLocalFile(descriptor, _direct_descriptor(path, descriptor) if large else -1)

    def open(self, path: Path) -> StoredFile:
        # A pipe in a file's place would keep whoever opens it waiting for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        folder = _plain_folder(path.parent)
        try:
            descriptor = os.open(path.name, flags, dir_fd=folder)
        except OSError as e:
            if e.errno == errno.ELOOP and path.is_symlink():
                raise OSError(errno.ELOOP, "a link, where a file belongs", str(path)) from e
            raise
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise OSError(errno.ENODATA, "not a regular file", str(path))
        return _StoredLocalFile(descriptor)

    def rename(self, source: Path, target: Path) -> None:
        os.replace(source, target)

    def fsync_folder(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def remove_file(self, path: Path) -> None:
        path.unlink()

    def remove_tree(self, path: Path) -> None:
        if path.is_symlink() or path.is_file():  # what a link leads to is not ours
            path.unlink()
        else:
            shutil.rmtree(path)

    def list(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))  # noqa: PTH208  (names, not paths)

    def exists(self, path: Path) -> bool:
        return os.path.lexists(path)


def _plain_folder(path: Path) -> int:
    """A descriptor of a folder that is no link: whoever plants one chooses what is read.

    Links further up are the user's own: checkpoints may lie on another disk.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except NotADirectoryError as e:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "its folder is a link", str(path)) from e
        raise


def read_whole(storage: Storage, path: Path, *, limit_bytes: int) -> bytes:
    """The content of a small file. Raises: OSError (EFBIG beyond the limit)."""
    file = storage.open(path)
    try:
        if file.size > limit_bytes:
            raise OSError(errno.EFBIG, f"larger than {limit_bytes:,} bytes", str(path))
        out = np.empty(file.size, dtype=np.uint8)
        return out[: file.read_into(0, out)].tobytes()
    finally:
        file.close()


def write_whole(storage: Storage, path: Path, content: bytes) -> None:
    """A small new file, its content durable (its name is so after `fsync_folder`)."""
    with storage.create(path, size=0) as file:
        file.write(0, content)
        file.fsync()


def ensure_folder(storage: Storage, path: Path) -> None:
    """Create `path` and what is missing above it, durably; nothing if it is there."""
    missing: list[Path] = []
    while not storage.exists(path):
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        if_absent(lambda folder=folder: storage.make_folder(folder))  # type: ignore[misc]
        storage.fsync_folder(folder.parent)


def if_absent(make: Callable[[], None]) -> None:
    """Make something that another process of the same run may make at the same time."""
    try:
        make()
    except FileExistsError:
        return  # another process of the same run was first
