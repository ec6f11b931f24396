"""A run's steps in an object store, and a Storage that shows them as on a disk.

    run.json  withdrawn.json  attempts/0003/plan.json       what a machine with nothing needs
    checkpoints/step-00000100.3fa9c1d2e4b5a697/rank-00000.safetensors ...
    checkpoints/step-00000100.3fa9c1d2e4b5a697/manifest.json          put last; makes it real

A folder is named for its manifest's digest, and the manifest holds the digest of every file: so an
object of that name and size has that content, whoever put it, and nothing is ever replaced by
something else. A step without its manifest is no step.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from trainer.errors import CheckpointError, CheckpointMismatch, DamagedCheckpoint
from trainer.records import withdrawn
from trainer.records.manifest import LIMIT_BYTES, MANIFEST_NAME, Manifest, decode, digest_of
from trainer.records.withdrawn import Withdrawal
from trainer.storage.local import Bytes, NewFile, StoredFile
from trainer.storage.remote import ObjectStore

CHECKPOINTS = Path("checkpoints")
ATTEMPTS = Path("attempts")
RUN_JSON = Path("run.json")
WITHDRAWN = Path(withdrawn.NAME)
_FOLDER = re.compile(r"step-(\d{8,16})\.([0-9a-f]{16})")
_STEP = re.compile(r"step-(\d{8,16})")
_SMALL_BYTES = 64 << 20
_NO_OBJECT = (
    errno.EISDIR,
    errno.EFBIG,
)  # a folder in its place, or far too large: not out of reach


@dataclass(frozen=True, order=True)
class StepObjects:
    """One folder of the store, whether it is committed or not."""

    step: int
    name: str

    @property
    def path(self) -> Path:
        return CHECKPOINTS / self.name

    @property
    def manifest(self) -> Path:
        return self.path / MANIFEST_NAME


def folder_of(step: int, manifest_digest: str) -> StepObjects:
    return StepObjects(step, f"step-{step:08d}.{manifest_digest[:16]}")


def all_folders(store: ObjectStore) -> list[StepObjects]:
    """Oldest step first. Raises: OSError."""
    matches = (_FOLDER.fullmatch(name) for name in store.names(CHECKPOINTS))
    return sorted(StepObjects(int(m[1]), m[0]) for m in matches if m)


def is_empty(store: ObjectStore) -> bool:
    """Whether the place shows nothing of a run: a new one, or not the one that was used.

    Raises: OSError.
    """
    return store.size(RUN_JSON) is None and not store.names(CHECKPOINTS)


def is_committed(store: ObjectStore, folder: StepObjects) -> bool:
    return store.size(folder.manifest) is not None


def read_object(store: ObjectStore, path: Path, *, limit_bytes: int = _SMALL_BYTES) -> bytes:
    """A small object, whole. Raises: OSError (EFBIG beyond the limit)."""
    size = store.size(path)
    if size is None:
        raise FileNotFoundError(errno.ENOENT, "no such object", str(path))
    if size > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes:,} bytes", str(path))
    out = np.empty(size, dtype=np.uint8)
    return out[: store.read(path, 0, out)].tobytes()


def stored_manifest(store: ObjectStore, folder: StepObjects) -> Manifest:
    """Raises: DamagedCheckpoint, CheckpointMismatch, OSError."""
    try:
        content = read_object(store, folder.manifest, limit_bytes=LIMIT_BYTES)
    except OSError as e:
        if e.errno not in _NO_OBJECT:
            raise
        raise DamagedCheckpoint(f"{folder.name}/{MANIFEST_NAME}: {e.strerror}") from e
    manifest = decode(content)
    if folder != folder_of(manifest.step, digest_of(content)):
        raise DamagedCheckpoint(f"{folder.name}/{MANIFEST_NAME}: of another step")
    return manifest


def withdrawals(store: ObjectStore) -> tuple[Withdrawal, ...]:
    """Raises: OSError; CheckpointError if the list is damaged."""
    if store.size(WITHDRAWN) is None:
        return ()
    try:
        return withdrawn.decode(read_object(store, WITHDRAWN))
    except (ValueError, IsADirectoryError) as e:
        raise CheckpointError(f"{WITHDRAWN} of the remote copies cannot be read: {e}") from e


def put_withdrawals(store: ObjectStore, listed: Sequence[Withdrawal]) -> None:
    """Raises: OSError."""
    content = np.frombuffer(withdrawn.encode(listed), dtype=np.uint8)
    store.put(WITHDRAWN, lambda: [content], size=len(content))


def is_withdrawn(manifest: Manifest, listed: Sequence[Withdrawal]) -> bool:
    return any(
        one.covers(manifest.step, attempt=manifest.attempt, created=manifest.created)
        for one in listed
    )


def committed(store: ObjectStore, listed: Sequence[Withdrawal]) -> Iterator[StepObjects]:
    """Steps that a run may go on from, newest first; a damaged manifest does not hide its step.

    Of several copies of one step (it was done again after the run went back) the last one made.
    """
    best: dict[int, tuple[tuple[int, float], StepObjects]] = {}
    for folder in all_folders(store):
        if not is_committed(store, folder):
            continue
        made = (0, 0.0)
        try:
            manifest = stored_manifest(store, folder)
            made = (manifest.attempt, manifest.created)
            if is_withdrawn(manifest, listed):
                continue
        except (DamagedCheckpoint, CheckpointMismatch):
            pass  # said by whoever loads it
        if folder.step not in best or best[folder.step][0] < made:
            best[folder.step] = (made, folder)
    for step in sorted(best, reverse=True):
        yield best[step][1]


class StepsView:
    """A Storage, for reading: `checkpoints/step-00000100/...` of these steps and nothing else.

    So the reader and the verifier of a disk's steps are those of a store's. `folders`: step ->
    the folder's name. Raises (everywhere): OSError.
    """

    def __init__(self, store: ObjectStore, folders: Mapping[int, str]) -> None:
        self._store = store
        self._folders = dict(folders)

    def list(self, path: Path) -> list[str]:
        if path == CHECKPOINTS:
            return [f"step-{step:08d}" for step in sorted(self._folders)]
        return self._store.names(self._real(path))

    def exists(self, path: Path) -> bool:
        if path == CHECKPOINTS:
            return True
        try:
            real = self._real(path)
        except FileNotFoundError:
            return False
        return self._store.size(real) is not None

    def open(self, path: Path) -> StoredFile:
        real = self._real(path)
        size = self._store.size(real)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", str(real))
        return _StoredObject(self._store, real, size)

    def _real(self, path: Path) -> Path:
        parts = path.relative_to(CHECKPOINTS).parts if path.is_relative_to(CHECKPOINTS) else ()
        match = _STEP.fullmatch(parts[0]) if parts else None
        if match is None or int(match[1]) not in self._folders:
            raise FileNotFoundError(errno.ENOENT, "no such step", str(path))
        return CHECKPOINTS.joinpath(self._folders[int(match[1])], *parts[1:])

    # --- what readers never do -----------------------------------------------------------------

    def make_folder(self, path: Path) -> None:
        _read_only(path)

    def create(self, path: Path, *, size: int) -> NewFile:
        _read_only(path)

    def rename(self, source: Path, target: Path) -> None:
        _read_only(source)

    def fsync_folder(self, path: Path) -> None:
        _read_only(path)

    def remove_file(self, path: Path) -> None:
        _read_only(path)

    def remove_tree(self, path: Path) -> None:
        _read_only(path)


class _StoredObject:
    def __init__(self, store: ObjectStore, path: Path, size: int) -> None:
        self._store = store
        self._path = path
        self.size = size

    def read_into(self, offset: int, out: Bytes) -> int:
        return self._store.read(self._path, offset, out)

    def close(self) -> None:
        """Nothing is held open."""


def _read_only(path: Path) -> NoReturn:
    raise OSError(errno.EROFS, "copies in an object store are only read here", str(path))
