"""Going on from the newest whole state in the memories of nodes, if it is newer than the disk's.

Each node's first rank says what lies there; rank 0 names the newest whole state, and puts its
manifest together; all ranks read it, each the ranges that it will hold, through the reader and the
checks that a disk's steps have. What a node lacks is read from the node that has it. A file that
turns out to be damaged, or out of reach, is replaced by its other copy; where there is none the
state is given up and the next older one, or the disk, is tried.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.loading import load_step
from trainer.checkpoint.peer.choice import (
    Copy,
    State,
    copy_of,
    from_row,
    is_abandoned,
    is_withdrawn,
    loads_in,
    to_row,
    whole_states,
)
from trainer.checkpoint.peer.part import decode, manifest_of
from trainer.checkpoint.peer.wire import Address, RemoteFile, check_file, read_part
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError, DamagedCheckpoint
from trainer.records.json_file import read_lines
from trainer.records.manifest import MANIFEST_NAME, digest_of, encode, rank_file_name
from trainer.records.memory_files import MemoryFiles
from trainer.records.run_files import RunFiles
from trainer.records.withdrawn import read_withdrawals
from trainer.storage.local import Bytes, LocalStorage, NewFile, StoredFile

_log = logging.getLogger("trainer.checkpoint")
_ROOT = Path("memory")
_MOST_TRIES = 8  # of one state; each replaces at least one copy


@dataclass(frozen=True)
class Loaded:
    """`checkpoint`: the digest of the manifest that was put together. `where`: for people."""

    step: int
    attempt: int
    generation: str
    checkpoint: str
    where: str
    training: dict[str, Any]


@dataclass(frozen=True)
class Here:
    """Who asks: `leader` is the first rank of this node. `addresses`: of all ranks' processes."""

    files: MemoryFiles
    rank: int
    leader: int
    token: str = ""
    addresses: Sequence[Address] = ()

    @property
    def leads(self) -> bool:
        return self.rank == self.leader


@dataclass
class Memories:
    """What the nodes hold, as it was when this attempt began, and what rank 0 has ruled out."""

    here: Here
    run: RunFiles
    run_hash: str
    _copies: list[Copy] | None = None
    _bad: set[tuple[int, str, int]] = field(default_factory=set)
    _given_up: set[tuple[int, int]] = field(default_factory=set)

    def load(self, world: World, engine: Engine, *, newer_than: int) -> Loaded | None:
        """Fill the engine from the newest whole state after `newer_than`; None if there is none,
        or none that can be read. All ranks alike. Collective.
        """
        if self._copies is None:
            self._look(world)
        for _ in range(_MOST_TRIES):
            named = world.lead(lambda: self._named(newer_than))
            if not named:
                return None
            step, attempt = int(named["step"]), int(named["attempt"])
            manifest = named["manifest"].encode()
            chosen = [(int(leader), str(place)) for leader, place in named["chosen"]]
            view = MemoryView(self.here, step, manifest, chosen)
            folders = StepFolders(view, _ROOT)
            try:
                training = load_step(world, engine, folders, step=step, run_hash=self.run_hash)
            except CheckpointError as e:
                self._rule_out(world, view, (step, attempt), e)
                continue
            generation = chosen[0][1].rpartition("/")[2]
            where = str(named["where"])
            if self.here.rank == 0:
                _log.warning("step %d was loaded from the %s", step, where)
            return Loaded(step, attempt, generation, digest_of(manifest), where, training)
        return None

    def _look(self, world: World) -> None:
        """Gather what lies on every node. One message a node."""
        rows = [to_row(copy) for copy in self._found_here()] if self.here.leads else []
        texts = world.gather(json.dumps(rows))
        self._copies = [from_row(row) for text in texts for row in json.loads(text)]

    def _found_here(self) -> list[Copy]:
        found = []
        for path in self.here.files.parts():
            place = path.parent.relative_to(self.here.files.root).as_posix()
            try:
                found.append(copy_of(decode(read_part(path)), leader=self.here.leader, place=place))
            except (OSError, CheckpointError) as e:
                _log.warning("%s in memory is passed over: %s", path.name, e)
        return found

    def _named(self, newer_than: int) -> dict[str, Any]:
        """Rank 0: what is to be read; {} if nothing is."""
        try:
            loads = loads_in(read_lines(self.run.lineage))
            withdrawn = read_withdrawals(self.run.withdrawn)
        except (OSError, ValueError) as e:
            _log.warning("no state in memory is read, for which of them count is unknown: %s", e)
            return {}

        def is_void(copy: Copy) -> bool:
            return (
                (copy.leader, copy.place, copy.rank) in self._bad
                or is_abandoned(copy, loads)
                or is_withdrawn(copy, withdrawn)
            )

        for state in whole_states(self._copies or (), run_hash=self.run_hash, is_void=is_void):
            if state.step <= newer_than:
                return {}
            if (state.step, state.attempt) in self._given_up:
                continue
            try:
                manifest = manifest_of(decode(state.chosen[0].part.encode()), state.rank_files)
                return _as_told(state, encode(manifest).decode())
            except (CheckpointError, ValueError) as e:
                self._given_up.add((state.step, state.attempt))
                _log.warning("step %d in memory is given up: %s", state.step, e)
        return {}

    def _rule_out(
        self, world: World, view: MemoryView, state: tuple[int, int], why: CheckpointError
    ) -> None:
        """Find the copies that are to blame; if none is, it is the state. Collective."""
        mine = [list(one) for one in view.out_of_reach]
        if isinstance(why, DamagedCheckpoint) and self.here.leads:
            mine += [list(one) for one in self._damaged_here(state)]
        texts = world.gather(json.dumps(mine))
        if self.here.rank != 0:
            return
        bad = {(int(a), str(b), int(c)) for text in texts for a, b, c in json.loads(text)}
        fresh = bad - self._bad
        self._bad |= bad
        if fresh:
            said = ", ".join(f"rank {rank}'s in {place}" for _, place, rank in sorted(fresh)[:4])
            _log.warning(
                "step %d in memory: %s; %d of its copies are left out (%s)",
                *(state[0], why, len(fresh), said),
            )
            return
        self._given_up.add(state)
        _log.warning("step %d in memory is given up: %s", state[0], why)

    def _damaged_here(self, state: tuple[int, int]) -> list[tuple[int, str, int]]:
        found = []
        for path in self.here.files.parts():
            place = path.parent.relative_to(self.here.files.root).as_posix()
            try:
                part = decode(read_part(path))
                if (part.step, part.attempt) != state:
                    continue
                check_file(path.with_name(rank_file_name(part.rank)), part)
            except (OSError, CheckpointError):
                found.append((self.here.leader, place, _rank_of(path)))
        return found


class MemoryView:
    """A Storage, for reading: one state's manifest and files, wherever they lie.

    `chosen`: (leader, place) of each rank's file. Raises (everywhere): OSError.
    """

    def __init__(
        self, here: Here, step: int, manifest: bytes, chosen: Sequence[tuple[int, str]]
    ) -> None:
        self._here = here
        self._folder = StepFolders(LocalStorage(), _ROOT).step(step)
        self._manifest = manifest
        self._chosen = {rank_file_name(rank): (rank, *one) for rank, one in enumerate(chosen)}
        self.out_of_reach: list[tuple[int, str, int]] = []

    def exists(self, path: Path) -> bool:
        return path == self._folder or (path.parent == self._folder and path.name in self._names())

    def list(self, path: Path) -> list[str]:
        return sorted(self._names()) if path == self._folder else [self._folder.name]

    def open(self, path: Path) -> StoredFile:
        if path == self._folder / MANIFEST_NAME:
            return _Text(self._manifest)
        rank, leader, place = self._chosen[path.name]
        try:
            if leader == self._here.leader:
                return LocalStorage().open(self._here.files.root / place / path.name)
            return RemoteFile(
                self._here.addresses[leader], self._here.token, f"{place}/{path.name}"
            )
        except OSError:
            self.out_of_reach.append((leader, place, rank))
            raise

    def make_folder(self, path: Path) -> None:
        _refuse(path)

    def create(self, path: Path, *, size: int) -> NewFile:
        _refuse(path)

    def rename(self, source: Path, target: Path) -> None:
        _refuse(source)

    def fsync_folder(self, path: Path) -> None:
        _refuse(path)

    def remove_file(self, path: Path) -> None:
        _refuse(path)

    def remove_tree(self, path: Path) -> None:
        _refuse(path)

    def _names(self) -> Mapping[str, Any]:
        return {MANIFEST_NAME: None, **self._chosen}


class _Text:
    def __init__(self, content: bytes) -> None:
        self._content = np.frombuffer(content, np.uint8)
        self.size = len(content)

    def read_into(self, offset: int, out: Bytes) -> int:
        piece = self._content[offset : offset + len(out)]
        out[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        return


def _as_told(state: State, manifest: str) -> dict[str, Any]:
    return {
        "step": state.step,
        "attempt": state.attempt,
        "manifest": manifest,
        "chosen": [[copy.leader, copy.place] for copy in state.chosen],
        "where": state.where,
    }


def _rank_of(part: Path) -> int:
    return int(part.stem.partition("-")[2])


def _refuse(path: Path) -> NoReturn:
    raise OSError(errno.EROFS, "states in memory are only read here", str(path))
