"""The memory tier of one rank: states kept here and at the neighbour, and loaded from there.

    start    the nodes' processes know each other
    load     from the newest whole state, if it is newer than what the disk has
    keep     a state every so many steps

How a state is kept: saves.py. How one is chosen and read: choice.py, loading.py.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from trainer.checkpoint.peer.cadence import Every
from trainer.checkpoint.peer.line import Line
from trainer.checkpoint.peer.loading import Here, Loaded, Memories
from trainer.checkpoint.peer.part import decode
from trainer.checkpoint.peer.saves import KeepSettings, PeerSaves
from trainer.checkpoint.peer.wire import new_token, read_part
from trainer.checkpoint.saving import SaveSettings
from trainer.checkpoint.uploads import ProcessCourier
from trainer.dist.meeting import own_address
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError
from trainer.records.memory_files import MemoryFiles, give_back
from trainer.records.run_files import RunFiles

_log = logging.getLogger("trainer.checkpoint")


@dataclass(frozen=True, kw_only=True)
class Peers:
    """`every`: steps, or "auto": as often as copies take at most 1 % of the time."""

    every: Every
    files: MemoryFiles
    ranks_per_node: int


class MemoryTier:
    """Of one rank, for one attempt. `drills`: its process may be broken on purpose."""

    def __init__(
        self, peers: Peers, settings: SaveSettings, run: RunFiles, *, drills: bool = False
    ) -> None:
        self._peers = peers
        self._settings = settings
        self._run = run
        self._drills = drills
        self._here: Here | None = None
        self._listener: socket.socket | None = None
        self._memories: Memories | None = None
        self._saves: PeerSaves | None = None
        self._is_off = False
        self.loaded: Loaded | None = None

    # --- loading ---------------------------------------------------------------------------------

    def load(self, world: World, engine: Engine, *, newer_than: int) -> Loaded | None:
        """As Memories.load: whatever is wrong there, the disk can still be read. Collective."""
        here = self._start(world)
        if self._is_off:
            return None
        if self._memories is None:
            self._memories = Memories(here, self._run, self._settings.run_hash)
        self.loaded = self._memories.load(world, engine, newer_than=newer_than)
        return self.loaded

    # --- keeping ---------------------------------------------------------------------------------

    def prepare(self, world: World, engine: Engine, *, parent: int | None) -> None:
        """Before the first step; see PeerSaves.prepare. Collective."""
        self._start(world)
        if self._is_off or self._saves is None:
            return
        self._saves.parent = parent
        self._saves.prepare(world, engine, kept=[self.loaded.generation] if self.loaded else [])

    def said(self) -> tuple[float, float]:
        return self._saves.said() if self._saves is not None else (0.0, 0.0)

    def keep(
        self,
        world: World,
        engine: Engine,
        *,
        step: int,
        told: tuple[float, float],
        training: Callable[[], Mapping[str, Any]],
    ) -> None:
        """After every step; see PeerSaves.keep."""
        if self._saves is not None:
            self._saves.keep(world, engine, step=step, told=told, training=training)

    @property
    def saves(self) -> PeerSaves | None:
        return self._saves

    def forget(self, world: World, after: int) -> None:
        """The run goes back: no state after this step counts. Collective."""
        if self._saves is None or self._here is None:
            return
        self._saves.forget(world, after)
        if self._here.leads:
            for path in self._peers.files.parts():
                with suppress(OSError, CheckpointError):
                    if decode(read_part(path)).step > after:
                        path.unlink()
        world.each(lambda: None)

    def close(self, *, for_good: bool) -> None:
        """Not collective. Unless `for_good`, what is in memory stays for the next attempt."""
        if self._saves is not None:
            self._saves.close()
            self._saves = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if for_good and self._here is not None and self._here.leads:
            give_back(self._peers.files, self._here.rank // self._peers.ranks_per_node)

    # --- who is where ----------------------------------------------------------------------------

    def _start(self, world: World) -> Here:
        """Once; with several nodes their processes' addresses are exchanged. Collective."""
        if self._here is not None:
            return self._here
        rank, size = world.place.rank, world.place.world_size
        per_node = self._peers.ranks_per_node
        token, addresses = "", []
        if size > per_node:
            told = self._met(world)
            token = str(told["token"])
            addresses = [(str(host), int(port)) for host, port in told["addresses"]]
            if not addresses:
                self._is_off = True
        leader = rank - rank % per_node
        here = Here(self._peers.files, rank, leader, token, addresses)
        self._here = here
        if not self._is_off:
            self._saves = self._opened(world, here)
        return here

    def _met(self, world: World) -> dict[str, Any]:
        """Every rank's address, and the attempt's token. About 30 bytes a rank, once an attempt."""
        mine: list[Any] = []
        problem = ""
        try:
            host = own_address()
            self._listener = socket.create_server((host, 0), backlog=256)
            mine = [host, self._listener.getsockname()[1]]
        except OSError as e:
            problem = f"rank {world.place.rank} cannot be reached by its neighbour: {e}"
        texts = world.gather(json.dumps([mine, problem]))

        def told() -> dict[str, Any]:
            rows = [json.loads(text) for text in texts]
            said = next((problem for _, problem in rows if problem), "")
            said = said or _not_one_network([address[0] for address, _ in rows if address])
            if said:
                _log.warning("nothing is kept in memory in this attempt: %s", said)
                return {"token": "", "addresses": []}
            return {"token": new_token(), "addresses": [address for address, _ in rows]}

        return world.lead(told)

    def _opened(self, world: World, here: Here) -> PeerSaves:
        rank, size, per_node = here.rank, world.place.world_size, self._peers.ranks_per_node
        files, settings = self._peers.files, self._settings
        opening = {
            "folder": str(files.folder),
            "run_id": files.run_id,
            "node": rank // per_node,
            "rank": rank,
            "world_size": size,
            "attempt": settings.attempt,
            "run_hash": settings.run_hash,
            "chunk_bytes": settings.chunk_bytes,
            "is_leader": here.leads,
            "copies": 2 if here.addresses else 1,
            "neighbour": here.addresses[(rank + per_node) % size] if here.addresses else None,
            "token": here.token,
            "drills": self._drills,
        }
        kept: tuple[int, ...] = ()
        words: list[str] = []
        if self._listener is not None:
            kept = (self._listener.fileno(),)
            words = ["--listener", str(self._listener.fileno())]
        courier = ProcessCourier(
            opening,
            module="trainer.checkpoint.peer.process",
            name="the process that keeps states in memory",
            kept=kept,
            words=words,
        )
        line = Line(courier)
        if here.addresses:  # others may read what lies here
            line.give({"do": "hold"})
        keep_settings = KeepSettings(
            every=self._peers.every,
            files=files,
            node=rank // per_node,
            rank=rank,
            world_size=size,
            attempt=settings.attempt,
            chunk_bytes=settings.chunk_bytes,
            origin=settings.origin,
            pin=world.device.type == "cuda",
        )
        return PeerSaves(keep_settings, line)


def _not_one_network(hosts: Sequence[str]) -> str:
    """A machine that takes the meeting place's name for itself gives an address of no use."""
    inside = [ip_address(host).is_loopback for host in hosts]
    if all(inside) or not any(inside):
        return ""
    return (
        f"rank {inside.index(True)}'s machine is reached at {hosts[inside.index(True)]}, which is "
        f"itself on every machine (rank {inside.index(False)}'s at {hosts[inside.index(False)]}); "
        "its /etc/hosts names the place where ranks meet so: use an address instead of the name"
    )


def peers_of(every: Every, *, folder: str, run_id: str, ranks_per_node: int) -> Peers | None:
    """What the settings say; None where nothing is kept in memory."""
    if every == 0:
        return None
    files = MemoryFiles(Path(folder), run_id)
    return Peers(every=every, files=files, ranks_per_node=ranks_per_node)
