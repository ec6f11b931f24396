"""Objects under a URL: the one door to fsspec. A put is the whole object or none; nothing renames.

    s3://bucket/prefix  gs://bucket/prefix  az://...  file:///mnt/shared  memory://tests

What credentials there are comes from the environment, files of the user or the machine's role, as
each store's library finds them; none is ever a setting here. A `file:` URL is written and made
durable by this module itself, in a folder that must be there: what is made on the way to it may lie
under a disk that is not mounted. With the others a put is what the library's is: whole for S3, GCS
and Azure. A store that shows half an object (sftp, for one) is safe as well, for readers check
sizes and seals.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from trainer.errors import LonghaulError, Refused
from trainer.records.redact import redactor_of
from trainer.storage.local import Bytes

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
_PACKAGES = {"az": "adlfs", "abfs": "adlfs", "abfss": "adlfs"}
_PUT_AT_ONCE_BYTES = 32 << 20
_MAX_PARTS = 9_000  # S3 allows 10,000 parts of one object
_TEXT = 300  # characters of a library's error that are told

_FULL = (errno.ENOSPC, errno.EDQUOT)

Blocks = Callable[[], Iterable[Bytes]]  # called again for every new try


class PlaceMissing(OSError):
    """The folder that a `file:` URL names is not there. No answer about what it holds."""


class ObjectStore(Protocol):
    """Named objects. Raises: OSError and its kinds, always (FileNotFoundError where none is)."""

    def names(self, folder: Path) -> list[str]:
        """What lies directly in a folder, folders too, sorted; empty if there is nothing."""

    def sizes(self, folder: Path) -> dict[str, int]:
        """The objects directly in a folder. Bytes."""

    def size(self, path: Path) -> int | None:
        """Bytes of an object; None if there is none."""

    def read(self, path: Path, offset: int, out: Bytes) -> int:
        """Fill `out` from `offset`; the bytes read, fewer only at the end."""

    def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
        """Make or replace an object: whole, or not at all."""

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove objects; one that is gone already is no error."""


def open_store(url: str, options: Mapping[str, Any] | None = None) -> ObjectStore:
    """The objects under `url`. Opens no connection yet.

    Raises: Refused if the URL's kind is unknown or its package is not installed.
    """
    import fsspec

    protocol = url.partition(":")[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError as e:
        extra = _EXTRAS.get(protocol)
        what = f"longhaul[{extra}]" if extra else _PACKAGES.get(protocol, str(e))
        raise Refused(f"{url} needs a package that is not installed: pip install '{what}'") from e
    except ValueError as e:
        raise Refused(f"{url}: no store has URLs that begin with {protocol}:") from e
    try:
        system = kind(**(options or {}), use_listings_cache=False, skip_instance_cache=True)
    except Exception as e:  # of any vendor, for options that it does not know
        raise Refused(f"{url}: cannot be used with these options: {_said(e)}") from e
    root = str(kind._strip_protocol(url)).rstrip("/")
    if protocol in ("file", "local"):
        return _Mounted(system, root, url)
    return RemoteStore(system, root, url)


def joined(url: str, *names: str) -> str:
    return "/".join((url.rstrip("/"), *names))


def is_full(error: OSError) -> bool:
    return error.errno in _FULL


def trouble(url: str, error: OSError) -> str:
    """What is wrong with a place, in a few words that name it."""
    said = error.strerror or str(error)
    if isinstance(error, PlaceMissing):
        return said
    return f"{url} is full ({said})" if is_full(error) else f"{url}: {said}"


class RemoteStore:
    """Any fsspec file system, used as an object store."""

    def __init__(self, system: Any, root: str, url: str) -> None:
        self._system = system
        self._root = root
        self.url = url

    def names(self, folder: Path) -> list[str]:
        return sorted(name for name, _, _ in self._listed(folder))

    def sizes(self, folder: Path) -> dict[str, int]:
        return {name: size for name, size, kind in self._listed(folder) if kind == "file"}

    def size(self, path: Path) -> int | None:
        with _told(path):
            try:
                return int(self._system.info(self._key(path))["size"])
            except FileNotFoundError:
                return None

    def read(self, path: Path, offset: int, out: Bytes) -> int:
        if not len(out):
            return 0
        with _told(path):
            data = self._system.cat_file(self._key(path), start=offset, end=offset + len(out))
        out[: len(data)] = np.frombuffer(data, dtype=np.uint8)
        return len(data)

    def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
        key = self._key(path)
        with _told(path):
            if size <= _PUT_AT_ONCE_BYTES:
                self._system.pipe_file(key, b"".join(b.tobytes() for b in blocks()))
                return
            part = max(_PUT_AT_ONCE_BYTES, -(-size // _MAX_PARTS))
            file = self._system.open(key, "wb", block_size=part)
            try:
                for block in blocks():
                    file.write(block.data)
            except BaseException:
                # Closing would make an object of what was written so far.
                file.discard()
                with suppress(AttributeError):  # of some kinds that is no variable
                    file.closed = True
                raise
            file.close()

    def remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            with _told(path):
                try:
                    self._system.rm_file(self._key(path))
                except FileNotFoundError:
                    continue

    def _listed(self, folder: Path) -> Iterator[tuple[str, int, str]]:
        with _told(folder):
            try:
                rows = self._system.ls(self._key(folder), detail=True)
            except FileNotFoundError:
                return
        for row in rows:
            name = PurePosixPath(str(row["name"]).rstrip("/")).name
            if name != folder.name or row["type"] == "file":
                yield name, int(row["size"] or 0), str(row["type"])

    def _key(self, path: Path) -> str:
        return f"{self._root}/{path.as_posix()}"


class _Mounted(RemoteStore):
    """A `file:` URL: durable before its name is there.

    Its own folder is made with the first object, none above it.
    """

    def _key(self, path: Path) -> str:
        above = Path(self._root).parent
        if not above.is_dir():
            said = f"the folder {above} is not there: mount it, or make it (mkdir -p)"
            raise PlaceMissing(errno.EREMOTEIO, said, str(path))
        return super()._key(path)

    def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
        target = Path(self._key(path))
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                partial.chmod(0o600)
                for block in blocks():
                    file.write(block.data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            descriptor = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def remove(self, paths: Iterable[Path]) -> None:
        folders = set()
        for path in paths:
            target = Path(self._key(path))
            target.unlink(missing_ok=True)
            folders.add(target.parent)
        for folder in folders:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Every vendor's error as an OSError that does not pass for a damaged file."""
    try:
        yield
    except (LonghaulError, PlaceMissing):
        raise  # of the blocks that are put, not of the store; or said well enough
    except FileNotFoundError as e:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path)) from e
    except Exception as e:
        number = e.errno if isinstance(e, OSError) and e.errno else errno.EREMOTEIO
        # What s3fs does not know is EIO to it; to a checkpoint's reader that is a broken disk.
        number = errno.EREMOTEIO if number == errno.EIO else number
        raise OSError(number, _said(e), str(path)) from e


def _said(error: Exception) -> str:
    strerror = error.strerror if isinstance(error, OSError) else None
    text = redactor_of(os.environ).text(" ".join(str(strerror or error).split()))
    name = type(error).__name__
    return f"{name}: {text}"[:_TEXT] if text else name
