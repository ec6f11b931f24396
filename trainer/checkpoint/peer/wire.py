"""Files between the memories of nodes: sent to a neighbour, read by ranges. Torch-free.

    -> 64 characters: the attempt's token      a connection without it is closed without a word
    -> {"put": {...}, "size"}, part, bytes     <- {"value": {}} once every chunk of it was checked
    -> {"stat": path}                          <- {"value": {"size"}}
    -> {"get": path, "offset", "length"}       <- {"value": {"length"}} and so many bytes

Paths are relative to MemoryFiles.root and of one form alone (part.is_place). Messages are
those of wire.py. The token travels in the attempt's own messages; it is in no file, list of
arguments or log.
"""

from __future__ import annotations

import contextlib
import errno
import hmac
import os
import re
import secrets
import socket
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trainer.checkpoint.checksum import ALGORITHMS
from trainer.checkpoint.format import HEADER_LIMIT_BYTES, decode_header, digest_of
from trainer.checkpoint.peer.part import LIMIT_BYTES, Part, decode, is_place, part_name
from trainer.checkpoint.wire import receive, said_of, send, value_of
from trainer.errors import DamagedCheckpoint
from trainer.records.manifest import rank_file_name
from trainer.records.memory_files import MemoryFiles
from trainer.storage.local import Bytes, LocalStorage, read_whole

Address = tuple[str, int]
_TOKEN_CHARACTERS = 64
_CONNECT_S = 5.0
_ADMIT_S = 5.0
PATIENCE_S = 30.0  # without a byte from the other side
_BLOCK_BYTES = 4 << 20
_FILE = re.compile(r"rank-\d{5,7}\.safetensors")


def new_token() -> str:
    return secrets.token_hex(_TOKEN_CHARACTERS // 2)


def connect(address: Address, token: str, *, patience_s: float = PATIENCE_S) -> socket.socket:
    """Raises: OSError."""
    link = socket.create_connection(address, timeout=_CONNECT_S)
    link.settimeout(patience_s)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    link.sendall(token.encode())
    return link


@dataclass(frozen=True)
class Sender:
    """Whose state it is."""

    node: int
    rank: int


def put(link: socket.socket, path: Path, part: bytes, generation: str, *, sender: Sender) -> None:
    """Send a rank's finished file; the neighbour has checked it when this returns.

    Raises: OSError, SaveFailed.
    """
    size = path.stat().st_size
    send(link, {"put": [sender.node, generation, sender.rank], "size": size, "part": part.decode()})
    with path.open("rb") as file:
        link.sendfile(file)
    answer = receive(link)
    if answer is None:
        raise ConnectionError("the neighbour hung up")
    value_of(answer)


class RemoteFile:
    """A StoredFile in another node's memory, read by ranges. Raises (everywhere): OSError."""

    def __init__(self, address: Address, token: str, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()  # readers read ahead in threads
        self._link = connect(address, token)
        self.size = int(self._ask({"stat": path})["size"])

    def read_into(self, offset: int, out: Bytes) -> int:
        with self._lock:
            asked = {"get": self._path, "offset": offset, "length": len(out)}
            length = int(self._ask(asked)["length"])
            _fill(self._link, out[:length])
        return length

    def close(self) -> None:
        self._link.close()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        send(self._link, message)
        answer = receive(self._link)
        if answer is None:
            raise ConnectionError(f"the node that has {self._path} hung up")
        if "error" in answer:
            raise OSError(int(answer.get("errno") or errno.EIO), str(answer["error"]), self._path)
        value: dict[str, Any] = answer["value"]
        return value


class Door:
    """The side that is asked: one thread a connection, none before it is admitted."""

    def __init__(self, files: MemoryFiles, node: int, token: str) -> None:
        self._files = files
        self._node = node
        self._token = token.encode()

    def serve(self, listener: socket.socket) -> None:
        """For ever; what goes wrong with one connection is that connection's end."""
        while True:
            try:
                link, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._one, args=(link,), daemon=True).start()

    def _one(self, link: socket.socket) -> None:
        with link, contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            link.settimeout(_ADMIT_S)
            said = bytearray(_TOKEN_CHARACTERS)
            _fill(link, np.frombuffer(said, np.uint8))
            if not hmac.compare_digest(bytes(said), self._token):
                return
            link.settimeout(None)  # between two questions; a peer that is gone closes
            while (message := receive(link)) is not None:
                link.settimeout(PATIENCE_S)
                self._answer(link, message)
                link.settimeout(None)

    def _answer(self, link: socket.socket, message: dict[str, Any]) -> None:
        if "put" in message:
            send(link, said_of(lambda: self._take(link, message)))
            return
        try:
            file = LocalStorage().open(self._path(str(message.get("get") or message["stat"])))
        except OSError as e:
            send(link, {"error": e.strerror or str(e), "errno": e.errno})
            return
        try:
            if "stat" in message:
                send(link, {"value": {"size": file.size}})
                return
            offset, length = int(message["offset"]), int(message["length"])
            out = np.empty(max(0, min(length, file.size - offset)), np.uint8)
            read = file.read_into(offset, out)
            send(link, {"value": {"length": read}})
            link.sendall(out[:read].data)
        finally:
            file.close()

    def _path(self, said: str) -> Path:
        place, _, name = said.rpartition("/")
        if not is_place(place) or not _FILE.fullmatch(name):
            raise FileNotFoundError(errno.ENOENT, "no such file in memory", said)
        return self._files.root / place / name

    def _take(self, link: socket.socket, message: dict[str, Any]) -> dict[str, Any]:
        """A neighbour's file. It counts once its part is here, which comes last."""
        neighbour, generation, rank = message["put"]
        part, size = decode(message["part"].encode()), int(message["size"])
        place = f"node-{self._node}/of-node-{int(neighbour)}/{generation}"
        if not is_place(place) or part.rank != rank or part.size != size:
            raise DamagedCheckpoint("it is not what its part says")
        folder = self._files.root / place
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / part_name(rank)).unlink(missing_ok=True)  # what was here counts no more
        path = folder / rank_file_name(rank)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(path, flags, 0o600)
        try:
            _receive_file(link, descriptor, size)
        finally:
            os.close(descriptor)
        check_file(path, part)
        write_part(folder, part, message["part"].encode())
        return {}


def check_file(path: Path, part: Part) -> None:
    """Read every byte of it. Raises: DamagedCheckpoint, OSError."""
    storage = LocalStorage()
    file = storage.open(path)
    try:
        prefix = np.empty(8, np.uint8)
        file.read_into(0, prefix)
        length = 8 + int.from_bytes(prefix.tobytes(), "little")
        if length > min(8 + HEADER_LIMIT_BYTES, file.size):
            raise DamagedCheckpoint(f"{path.name}: a header of {length} bytes")
        content = np.empty(length, np.uint8)
        file.read_into(0, content)
        if digest_of(content.tobytes()) != part.digest:
            raise DamagedCheckpoint(f"{path.name}: the header does not match its part's digest")
        header = decode_header(content.tobytes(), file=path.name, size=file.size)
        found = (header.identity.step, header.identity.rank, header.identity.world_size)
        if found != (part.step, part.rank, part.world_size):
            raise DamagedCheckpoint(f"{path.name}: is of step, rank, world {found}")
        checksum = ALGORITHMS[header.algorithm]
        block = np.empty(header.chunk_bytes, np.uint8)
        for number, wanted in enumerate(header.checksums):
            at = number * header.chunk_bytes
            piece = block[: min(header.chunk_bytes, header.data_bytes - at)]
            file.read_into(header.data_start + at, piece)
            if checksum(piece, 0) != wanted:
                raise DamagedCheckpoint(f"{path.name}: chunk {number} does not match its checksum")
    finally:
        file.close()


def read_part(path: Path) -> bytes:
    """Raises: OSError."""
    return read_whole(LocalStorage(), path, limit_bytes=LIMIT_BYTES)


def write_part(folder: Path, part: Part, content: bytes) -> None:
    """There at once or not at all. Raises: OSError."""
    path = folder / part_name(part.rank)
    partial = path.with_suffix(f"{path.suffix}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    partial.replace(path)


def _receive_file(link: socket.socket, descriptor: int, size: int) -> None:
    """Raises: OSError; ENOSPC before a byte is taken, and then all of them are thrown away."""
    problem: OSError | None = None
    try:
        if os.fstat(descriptor).st_size != size:
            os.ftruncate(descriptor, 0)
            os.posix_fallocate(descriptor, 0, size)
    except OSError as e:
        problem = e
        os.ftruncate(descriptor, 0)
    block = np.empty(min(_BLOCK_BYTES, max(1, size)), np.uint8)
    for at in range(0, size, _BLOCK_BYTES):
        piece = block[: min(_BLOCK_BYTES, size - at)]
        _fill(link, piece)
        if problem is None:
            _write(descriptor, piece, at)
    if problem is not None:
        raise problem


def _write(descriptor: int, piece: Bytes, offset: int) -> None:
    left = piece.data
    while left:
        done = os.pwrite(descriptor, left, offset)
        left, offset = left[done:], offset + done


def _fill(link: socket.socket, out: Bytes) -> None:
    view = out.data
    while view:
        got = link.recv_into(view)
        if not got:
            raise ConnectionError("the other side hung up")
        view = view[got:]
