"""The watcher of a node, in its first task, and how the node's other tasks find it.

They meet at a socket in a folder that only their user can enter. A task says which rank it is and
gets the page on which its rank is to say where it is; then it says which process that became, and
at the end how it ended. Who hangs up without a word was killed. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node.failure import record_death
from launch.node.ranks_spec import RanksSpec
from launch.run.node_record import NodeRecord, write_node
from launch.slurm.place import SlurmPlace
from launch.watch.finding import Finding
from launch.watch.watching import Watch
from trainer.errors import Exit
from trainer.records.run_files import AttemptFiles, RunFiles

_SOCKET = "watch"
_LOOK_S = 0.5  # between two looks at the shared disk for a failure elsewhere
_FIND_S = 20.0  # for the first task to listen: it may start last
KILLED = -9  # of a task that hung up without a word


def private_folder(files: AttemptFiles, place: SlurmPlace) -> Path:
    """A folder of this attempt on this node, ours alone; made by whichever task comes first.

    Raises: OSError if somebody else has put something in its place.
    """
    folder = Path(tempfile.gettempdir()) / f"{_of_run(files, place)}{files.number:04d}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.getuid() or found.st_mode & 0o077 or not folder.is_dir():
        raise PermissionError(f"{folder} is not this user's own")
    return folder


def remove_older(files: AttemptFiles, place: SlurmPlace) -> None:
    """What earlier attempts of the run left on this node because they were killed."""
    name = _of_run(files, place)
    for folder in Path(tempfile.gettempdir()).glob(f"{name}*"):
        number = folder.name.removeprefix(name)
        if number.isdigit() and int(number) < files.number and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)


def _of_run(files: AttemptFiles, place: SlurmPlace) -> str:
    run = hashlib.sha256(str(files.root.parent.resolve()).encode()).hexdigest()[:12]
    return f"longhaul-{os.getuid()}-{run}-{place.node_name}-"


def _address(descriptor: int) -> str:
    """Of the socket, however long the folder's own path is (Unix allows 107 characters)."""
    return f"/proc/self/fd/{descriptor}/{_SOCKET}"


@dataclass
class Seat:
    """One rank as the watcher sees it; `link` None: it sits in the watcher's own task."""

    rank: int
    link: socket.socket | None = None
    pid: int = 0
    code: int | None = None


@dataclass
class Node:
    """The watcher's side. `own`: the rank of its own task."""

    run: RunFiles
    files: AttemptFiles
    place: SlurmPlace
    spec: RanksSpec
    folder: Path
    watch: Watch
    listener: socket.socket
    seats: dict[int, Seat] = field(default_factory=dict)  # by rank
    first_failed: int | None = None
    _looked: float = 0.0
    _unseated: list[socket.socket] = field(default_factory=list)
    _descriptor: int = -1

    @classmethod
    def open(
        cls, run: RunFiles, files: AttemptFiles, place: SlurmPlace, spec: RanksSpec, folder: Path
    ) -> Node:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ranks = spec.ranks_of(place.node)
        watch = Watch(
            files, ranks=ranks, rules=spec.watch, world_size=spec.world_size, node=place.node
        )
        node = cls(run, files, place, spec, folder, watch, listener, _descriptor=descriptor)
        node.seats[place.rank] = Seat(place.rank)
        node._write(over=False)
        Path(_address(descriptor)).unlink(missing_ok=True)
        listener.bind(_address(descriptor))
        listener.listen(256)
        listener.setblocking(False)
        return node

    @property
    def descriptors(self) -> list[int]:
        seated = [s.link.fileno() for s in self.seats.values() if s.link is not None]
        return [self.listener.fileno(), *seated, *(s.fileno() for s in self._unseated)]

    def pump(self) -> None:
        """Hear whoever has something to say."""
        while True:
            try:
                link, _ = self.listener.accept()
            except BlockingIOError:
                break
            self._unseated.append(link)
        ready = select.poll()
        for descriptor in self.descriptors[1:]:
            ready.register(descriptor, select.POLLIN)
        spoke = {descriptor for descriptor, _ in ready.poll(0)}
        for link in [link for link in self._unseated if link.fileno() in spoke]:
            self._unseated.remove(link)
            self._seat(link, _heard(link))
        for seat in list(self.seats.values()):
            if seat.link is not None and seat.link.fileno() in spoke:
                self._hear(seat)

    def _seat(self, link: socket.socket, said: dict[str, Any] | None) -> None:
        rank = int((said or {}).get("rank", -1))
        if rank not in self.spec.ranks_of(self.place.node) or rank in self.seats:
            link.close()
            return
        self.seats[rank] = Seat(rank, link)
        _say(link, self.environment(rank))

    def _hear(self, seat: Seat) -> None:
        assert seat.link is not None
        said = _heard(seat.link)
        if said is None:
            seat.link.close()
            seat.link = None
            if seat.code is None:
                self.ended(seat.rank, KILLED)
                if not self.files.stop.exists():
                    record_death(self.files, seat.rank, KILLED)
        elif "pid" in said:
            self.started(seat.rank, int(said["pid"]))
        elif "code" in said:
            self.ended(seat.rank, int(said["code"]))

    def somebody_failed(self) -> bool:
        """Here or on another node. Only the first task of a node asks the shared disk."""
        if self.first_failed is None and time.monotonic() - self._looked >= _LOOK_S:
            self._looked = time.monotonic()
            return self.files.error.exists()
        return self.first_failed is not None

    # --- what a rank's own task says, here or over there ------------------------------------------

    def environment(self, rank: int) -> dict[str, str]:
        return self.watch.environment(rank)

    def started(self, rank: int, pid: int) -> None:
        self.seats[rank].pid = pid
        self.watch.started(rank, pid)

    def ended(self, rank: int, code: int) -> None:
        self.seats[rank].code = code
        self.watch.ended(rank, code)
        if code not in (Exit.DONE, Exit.SAVED) and self.first_failed is None:
            self.first_failed = rank

    def look(self, now: float) -> Finding | None:
        """The first hang of a rank of this node. `now`: time.monotonic()."""
        self.pump()
        return None if self.first_failed is not None else self.watch.poll(now)

    def is_over(self) -> bool:
        """Whether every rank of this node has ended, as far as they ever came."""
        came = all(rank in self.seats for rank in self.spec.ranks_of(self.place.node))
        return came and all(seat.code is not None for seat in self.seats.values())

    def close(self, *, patience_s: float, exit_code: int, why: str) -> None:
        """Wait for the others, then write down how all ended."""
        deadline = time.monotonic() + patience_s
        while not self.is_over() and time.monotonic() < deadline:
            time.sleep(0.05)
            self.pump()
        self._write(over=True)
        self.watch.close(exit_code=exit_code, why=why)
        self.listener.close()
        os.close(self._descriptor)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, *, over: bool) -> None:
        codes = {str(s.rank): s.code for s in self.seats.values() if s.code is not None}
        ranks = tuple(self.spec.ranks_of(self.place.node))
        record = NodeRecord(self.place.node, self.place.node_name, ranks, over, codes)
        write_node(self.files, record)


@dataclass
class Link:
    """Another task's side."""

    socket: socket.socket
    rank: int
    page: dict[str, str]

    @classmethod
    def find(cls, folder: Path, rank: int, *, patience_s: float = _FIND_S) -> Link:
        """Raises: OSError if no watcher answers."""
        deadline = time.monotonic() + patience_s
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            while True:
                try:
                    link.connect(_address(descriptor))
                    break
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)
        finally:
            os.close(descriptor)
        link.settimeout(max(1.0, deadline - time.monotonic()))
        _say(link, {"rank": rank})
        page = _heard(link)
        if page is None:
            raise ConnectionError("the node's watcher hung up")
        return cls(link, rank, page)

    @property
    def descriptors(self) -> list[int]:
        return []  # the socket is only asked, at the pace of everything else

    def somebody_failed(self) -> bool:
        """The watcher left before us: it does so when a rank has failed."""
        ready = select.poll()
        ready.register(self.socket, select.POLLIN)
        return bool(ready.poll(0)) and _heard(self.socket) is None

    def environment(self, rank: int) -> dict[str, str]:
        del rank  # its own
        return self.page

    def started(self, rank: int, pid: int) -> None:
        _say(self.socket, {"rank": rank, "pid": pid})

    def ended(self, rank: int, code: int) -> None:
        _say(self.socket, {"rank": rank, "code": code})


@dataclass(frozen=True)
class Unwatched:
    """Where no watcher can be had: the rank works, and nobody sees it hang."""

    files: AttemptFiles

    @property
    def descriptors(self) -> list[int]:
        return []

    def somebody_failed(self) -> bool:
        return self.files.error.exists()

    def environment(self, rank: int) -> dict[str, str]:
        del rank
        return {}

    def started(self, rank: int, pid: int) -> None:
        del rank, pid

    def ended(self, rank: int, code: int) -> None:
        del rank, code


def _say(link: socket.socket, what: dict[str, Any]) -> None:
    try:
        link.send(json.dumps(what).encode())
    except OSError:
        return  # who has hung up needs no answer


def _heard(link: socket.socket) -> dict[str, Any] | None:
    """None: it hung up."""
    try:
        data = link.recv(1 << 16)
        value = json.loads(data) if data else None
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
