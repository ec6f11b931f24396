"""What stands in a run's checkpoints folder, and the few moves that are made there.

step-00000100/               real: its manifest was written last, then the folder was renamed
step-00000200.incoming-0003  being written by attempt 3, or left over from it
step-00000050.removing       being deleted, or left over
quarantine/step-00000150.1/  failed a check; kept for a person, never read again
latest.json                  a hint for people and scripts; no reader here trusts it
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import CheckpointError, DamagedCheckpoint, RunFolderError
from trainer.faultpoints import faultpoint
from trainer.records.manifest import LIMIT_BYTES, MANIFEST_NAME, Manifest, decode, digest_of
from trainer.records.run_files import step_name, step_of
from trainer.storage.local import Storage, ensure_folder, if_absent, read_whole, write_whole

# What a broken file looks like. Other errors (no permission, too many open files) say nothing
# about the checkpoint, and nothing is condemned for them.
_DAMAGE = (
    errno.ENOENT,
    errno.EIO,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENODATA,
    errno.ENXIO,
)
_NO_FOLDER = (errno.ENOTDIR, errno.ELOOP)  # a file, or a link, in a folder's place

_INCOMING = re.compile(r"step-\d{8,16}\.incoming-(\d+)")
_POINTER = "latest.json"
_POINTER_PARTIAL = ".latest.json.partial"
_QUARANTINE = "quarantine"
_REMOVING = ".removing"
_WHY = "why.txt"


@dataclass(frozen=True)
class StepFolders:
    """The moves. Raises: OSError from the storage, nothing of its own but where said."""

    storage: Storage
    root: Path

    def step(self, step: int) -> Path:
        return self.root / step_name(step)

    def incoming(self, step: int, attempt: int) -> Path:
        return self.root / f"step-{step:08d}.incoming-{attempt:04d}"

    def steps(self) -> list[int]:
        """Published steps, oldest first; whether they are whole is another question."""
        return sorted(step for name in self._names() if (step := step_of(name)) is not None)

    def quarantined(self) -> list[str]:
        return self._listed(self.root / _QUARANTINE)

    def strays(self) -> list[str]:
        """What tells, where there is no step, that there has been one: its pointer, other names."""
        other = [n for n in self._names() if step_of(n) is None and n not in self.unfinished()]
        held = [n for n in other if self.storage.exists(self.root / n / MANIFEST_NAME)]
        return held or [n for n in other if n == _POINTER]

    def unfinished(self) -> list[str]:
        """Leftovers of saves that never ended and of deletions that did not."""
        return [n for n in self._names() if _INCOMING.fullmatch(n) or n.endswith(_REMOVING)]

    def manifest(self, step: int) -> tuple[Manifest, str]:
        """The step's manifest and its digest. Raises: CheckpointError and its kinds."""
        path = self.step(step) / MANIFEST_NAME
        try:
            content = read_whole(self.storage, path, limit_bytes=LIMIT_BYTES)
        except OSError as e:
            raise read_failure(e, path) from e
        manifest = decode(content)
        if manifest.step != step:
            raise DamagedCheckpoint(f"{MANIFEST_NAME}: of step {manifest.step}")
        return manifest, digest_of(content)

    def enter(self, step: int, attempt: int) -> Path:
        """This attempt's incoming folder; the first rank that comes makes it."""
        ensure_folder(self.storage, self.root)
        folder = self.incoming(step, attempt)
        if_absent(lambda: self.storage.make_folder(folder))
        return folder

    def reap(self, attempt: int, *, but: str = "") -> None:
        """Remove what this attempt and those before it left unfinished; later ones' stays."""
        for name in self.unfinished():
            match = _INCOMING.fullmatch(name)
            if name != but and (match is None or int(match[1]) <= attempt):
                self.storage.remove_tree(self.root / name)

    def publish(
        self,
        incoming: Path,
        step: int,
        manifest: bytes,
        *,
        files: Iterable[str],
        may: Callable[[], None],
    ) -> Path:
        """Make a fully written folder the step. It is durable when this returns.

        `files`: what must lie in it, whatever the ranks said. `may` is asked at the last moment,
        and raises if this process may no longer write.
        Raises: OSError; CheckpointError if a file is gone.
        """
        final = self.step(step)
        found = set(self.storage.list(incoming))
        if gone := sorted(set(files) - found):
            raise CheckpointError(f"{len(gone)} written files are gone, {gone[0]} for one")
        if MANIFEST_NAME in found:  # of a save of this step that failed
            self.storage.remove_file(incoming / MANIFEST_NAME)
        write_whole(self.storage, incoming / MANIFEST_NAME, manifest)
        self.storage.fsync_folder(incoming)
        faultpoint("save.before_rename")
        may()
        self.storage.rename(incoming, final)
        self.storage.fsync_folder(self.root)
        return final

    def point(self, step: int, digest: str) -> None:
        """A folder in the pointer's place, which no file can replace, is set aside."""
        partial = self.root / _POINTER_PARTIAL
        if self.storage.exists(partial):
            try:
                self.storage.remove_file(partial)
            except IsADirectoryError:
                self._set_aside(partial)
        content = json.dumps({"step": step, "sha256": digest}) + "\n"
        write_whole(self.storage, partial, content.encode())
        try:
            self.storage.rename(partial, self.root / _POINTER)
        except IsADirectoryError:
            self._set_aside(self.root / _POINTER)
            self.storage.rename(partial, self.root / _POINTER)
        self.storage.fsync_folder(self.root)

    def _set_aside(self, path: Path) -> Path:
        """Move something to quarantine under a name that is free there, `path.name.1` first."""
        folder = self.root / _QUARANTINE
        ensure_folder(self.storage, folder)
        target = folder / self._free(path.name)
        self.storage.rename(path, target)
        self.storage.fsync_folder(folder)
        return target

    def _free(self, name: str) -> str:
        taken = set(self.storage.list(self.root / _QUARANTINE))
        number = next(n for n in range(1, len(taken) + 2) if f"{name}.{n}" not in taken)
        return f"{name}.{number}"

    def quarantine(self, step: int, why: str) -> Path:
        """Move a step out of every reader's sight, with a note saying why.

        A file or a link in a step's place goes into a folder, so that the note is written beside
        it and not to where it leads.
        """
        folder = self.root / _QUARANTINE
        ensure_folder(self.storage, folder)
        name = self.step(step).name
        target = folder / self._free(name)
        if self._is_folder(self.step(step)):
            self.storage.rename(self.step(step), target)
        else:
            self.storage.make_folder(target)
            self.storage.rename(self.step(step), target / name)
            self.storage.fsync_folder(target)
        self.storage.fsync_folder(folder)
        self.storage.fsync_folder(self.root)
        if not self.storage.exists(target / _WHY):
            write_whole(self.storage, target / _WHY, f"{why}\n".encode())
        return target

    def remove(self, step: int) -> None:
        """Delete a step. Renamed first, so that half of it is never taken for a checkpoint."""
        doomed = self.root / f"{self.step(step).name}{_REMOVING}"
        self.storage.rename(self.step(step), doomed)
        self.storage.fsync_folder(self.root)
        self.storage.remove_tree(doomed)

    def _names(self) -> list[str]:
        return self._listed(self.root)

    def _listed(self, folder: Path) -> list[str]:
        return self.storage.list(folder) if self.storage.exists(folder) else []

    def _is_folder(self, path: Path) -> bool:
        try:
            self.storage.open(path / _WHY).close()
        except OSError as e:
            return e.errno not in _NO_FOLDER
        return True


def on_disk(folders: StepFolders) -> tuple[list[int], list[str]]:
    """The steps, oldest first, and what is in quarantine.

    Raises: RunFolderError if something that is no folder is in the place of either.
    """
    try:
        return folders.steps(), folders.quarantined()
    except (NotADirectoryError, FileNotFoundError) as e:
        raise RunFolderError(
            f"{e.filename} is a file, or a link that leads nowhere, in the place of a folder: "
            "bring the folder back, or move what is there out of the way"
        ) from e


def read_failure(error: OSError, path: Path) -> CheckpointError:
    """What an error while reading a checkpoint's file means."""
    if error.errno in (*_DAMAGE, errno.EFBIG):
        return DamagedCheckpoint(f"{path.name}: {error.strerror}")
    return CheckpointError(f"cannot read {path}: {error.strerror}")


def doomed(
    steps: list[int],
    *,
    keep_last: int,
    keep_every: int,
    needed_before: int | None = None,
    best: int | None = None,
) -> list[int]:
    """The steps that retention gives up, oldest first: not among the newest, no multiple.

    Nor the newest of those older than `needed_before`: the run may have to go back to it. Nor the
    `best`, which will be the run's result.
    """
    older = sorted(steps)[:-keep_last]
    needed = max((s for s in steps if needed_before is not None and s < needed_before), default=-1)
    kept = (needed, best)
    return [s for s in older if s not in kept and not (keep_every and s % keep_every == 0)]
