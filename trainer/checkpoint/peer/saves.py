"""A rank's states in shared memory: copied at a step's boundary, made to count by a process.

    keep      copy what I hold into the generation that is not the newest whole one
    process   checksums, header, part; the neighbour's copy
    keep      all ranks' parts count (each says so with its step): the newest whole state is this

Training waits for the copy; where the interval is a number, which promises how much is lost at
most, also a moment for the state before the one that is due. A state that is due while one is under
way is dropped and counted. Nothing is gathered, broadcast or written anywhere else: what a rank
says rides on the step's one collective, so every rank goes through the same states.
"""

from __future__ import annotations

import logging
import mmap
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.checkpoint.agreement import Disagreed, agree
from trainer.checkpoint.contents import Contents, agree_on_contents
from trainer.checkpoint.format import (
    ELEMENT_BYTES,
    Identity,
    data_bytes_of,
    encode_header,
    num_chunks,
)
from trainer.checkpoint.held import plan_fragments
from trainer.checkpoint.orders import encode_table
from trainer.checkpoint.peer.cadence import Cadence, Every
from trainer.checkpoint.peer.line import Line
from trainer.checkpoint.peer.part import common_of, part_name
from trainer.checkpoint.staging import copy_held, register, unregister
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError
from trainer.faultpoints import faultpoint
from trainer.records.manifest import rank_file_name
from trainer.records.memory_files import GENERATIONS, MemoryFiles

_log = logging.getLogger("trainer.checkpoint")
_PATIENCE_S = 0.5  # of a step with the state before its own
_CHANCES = 3  # states in a row that take longer, until none is waited for any more
_LONGEST_STEP = 10**15  # the longest text that a step's number may have in a header


@dataclass(frozen=True, kw_only=True)
class KeepSettings:
    """What is the same for every state of an attempt on one rank."""

    every: Every
    files: MemoryFiles
    node: int
    rank: int
    world_size: int
    attempt: int
    chunk_bytes: int
    origin: Mapping[str, Any]
    pin: bool = False  # lock the pages for a GPU's own copies


class PeerSaves:
    """`line`: to the process; all ranks have the same settings but for who they are."""

    def __init__(self, settings: KeepSettings, line: Line) -> None:
        self._settings = settings
        self._line = line
        self._cadence = Cadence(settings.every)
        self._chances = _CHANCES
        self._is_off = False
        self._contents: Contents | None = None
        self._layout: dict[str, Any] = {}
        self._told_layout = False
        self._under_way: _Order | None = None
        self._made: list[str] = []  # generations that there is room for
        self._rooms: dict[str, _Room] = {}
        self._whole: str | None = None  # the generation of the newest whole state
        self.step: int | None = None  # ... and its step
        self.parent: int | None = None
        self.dropped = self.failed = 0

    def prepare(self, world: World, engine: Engine, *, kept: Sequence[str]) -> None:
        """Agree on what is kept, and have room made; `kept`: generations that are the newest whole
        state for now. Collective.
        """
        try:
            contents = agree_on_contents(
                world, engine, known=None, held=lambda: plan_fragments(engine)
            )
        except Disagreed as e:
            self._give_up(world, str(e))
            return
        self._contents = contents
        self._layout = self._layout_of(contents)
        names = [f"{self._settings.attempt:04d}.{i}" for i in range(GENERATIONS)]
        # With an older state to keep, the second one gets its room once the first is whole.
        self._make(names[:1] if kept else names, keep=kept)

    def said(self) -> tuple[float, float]:
        """For the step's sum: whether what is under way has ended here, and well. Local; cheap
        unless what is under way would keep the next state from being made.
        """
        if self._under_way is None or not self._has_ended(self._under_way):
            return 0.0, 0.0
        return 1.0, float(not self._line.problem)

    def _has_ended(self, order: _Order) -> bool:
        if self._line.ended(order.began):
            return True
        if not self._chances or not self._cadence.is_awaited:
            return False
        until = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until:
            time.sleep(0.001)
            if self._line.ended(order.began):
                self._chances = _CHANCES
                return True
        self._chances -= 1
        if not self._chances:
            _log.warning(
                "states take longer to keep in memory than steps take: those that come meanwhile "
                "are dropped from here on (checkpoint.peer.every=auto chooses an interval)"
            )
        return False

    def keep(
        self,
        world: World,
        engine: Engine,
        *,
        step: int,
        told: tuple[float, float],
        training: Callable[[], Mapping[str, Any]],
    ) -> None:
        """After every step, on all ranks; `told`: the sums of what they `said`.

        Collective only where the interval is chosen or room could not be made.
        """
        if self._is_off:
            return
        ended, well = told
        self._cadence.lap(step, busy=self._under_way is not None)
        if self._under_way is not None and ended == world.place.world_size:
            self._concluded(world, well == world.place.world_size)
        if self._is_off or not self._cadence.due(step):
            return
        free = [name for name in self._made if name != self._whole]
        if self._under_way is not None or not free:
            self.dropped += self.step is not None  # before the first one there is no room yet
            return
        began = time.perf_counter()
        self._begin(engine, free[0], step=step, training=training)
        self._cadence.copied(world, time.perf_counter() - began)

    def forget(self, world: World, after: int) -> None:
        """The run goes back: states after this step count no more, here and nearby. Collective."""
        until = time.monotonic() + 10.0
        while (order := self._under_way) is not None and not self._line.ended(order.began):
            if time.monotonic() > until:
                self._line.end("it was in the way of going back")
            time.sleep(0.002)
        well = world.sum([float(not self._line.problem)])[0] == world.place.world_size
        if self._under_way is not None and self._under_way.kind == "make":
            self._concluded(world, well)
        self._under_way = None  # and no rank's process writes a part any more
        if self.step is not None and self.step > after:
            self._whole = self.step = None
        self._cadence.go_back(after)

    @property
    def note(self) -> str:
        """How it stands, for people; "" before anything was kept."""
        if self._is_off or (self.step is None and not self.dropped + self.failed):
            return ""
        newest = "no state" if self.step is None else f"step {self.step}"
        counts = [f"{self.dropped} dropped"] if self.dropped else []
        counts += [f"{self.failed} failed"] if self.failed else []
        return "; ".join([f"{newest} in memory, {self._cadence.why}", *counts])

    @property
    def copy_s(self) -> float:
        """Seconds that training stands still for a state."""
        return self._cadence.stall_s

    def close(self) -> None:
        """Not collective; never hangs. What counts stays in memory."""
        self._line.close()
        for room in self._rooms.values():
            room.close()
        self._rooms.clear()
        self._is_off = True

    # --- what is under way -----------------------------------------------------------------------

    def _make(self, names: Sequence[str], *, keep: Sequence[str]) -> None:
        order = {"do": "make", "generations": list(names), "keep": list(keep)}
        self._give(order, _Order("make", tuple(names), time.monotonic()))

    def _begin(
        self,
        engine: Engine,
        generation: str,
        *,
        step: int,
        training: Callable[[], Mapping[str, Any]],
    ) -> None:
        """What fails here fails this state, on all ranks."""
        under_way = _Order("seal", (generation,), time.monotonic(), step)
        try:
            room = self._room(generation)
            # Before the first byte of it changes, the state that was here counts no more.
            (room.path.parent / part_name(self._settings.rank)).unlink(missing_ok=True)
            self._copy(engine, room)
            order = {
                "do": "seal",
                "generation": generation,
                "step": step,
                "created": time.time(),
                "parent": self.parent,
                "training": dict(training()),
            }
        except (OSError, ValueError, CheckpointError) as e:
            self._under_way = under_way
            self._line.fail(str(e))
            return
        faultpoint("memory.copied")
        self._give(order, under_way)

    def _copy(self, engine: Engine, room: _Room) -> None:
        assert self._contents is not None
        mine = self._contents.mine
        if copy_held(engine, room.tensor, known=mine) != mine:
            raise CheckpointError("the engine holds other tensors than at the start")

    def _give(self, order: dict[str, Any], under_way: _Order) -> None:
        self._under_way = under_way
        if not self._told_layout:
            order["layout"], self._told_layout = self._layout, True
        self._line.give(order)

    def _concluded(self, world: World, well: bool) -> None:
        order, self._under_way = self._under_way, None
        assert order is not None
        if order.kind == "make":
            if not well:
                self._give_up(world, self._line.problem)
                return
            self._made += order.generations
            return
        if not well:
            self._failed_state(order)
            return
        (self._whole,), self.step = order.generations, order.step
        if len(self._made) < GENERATIONS:
            name = f"{self._settings.attempt:04d}.{len(self._made)}"
            self._make([name], keep=self._made)

    def _failed_state(self, order: _Order) -> None:
        self.failed += 1
        self._told_layout = False  # a process that was started anew knows nothing
        if self._line.problem and (self.failed & (self.failed - 1)) == 0:
            _log.warning(
                "step %s was not kept in memory (%d so far): %s",
                *(order.step, self.failed, self._line.problem),
            )

    def _give_up(self, world: World, mine: str) -> None:
        """For this attempt. Collective."""

        def named(rows: Sequence[str]) -> str:
            return next((f"rank {rank}: {text}" for rank, text in enumerate(rows) if text), "")

        why = agree(world, lambda: mine, named)
        self._is_off = True
        self._line.close()
        if world.place.rank == 0:
            _log.warning("nothing is kept in memory in this attempt: %s", why)

    def _layout_of(self, contents: Contents) -> dict[str, Any]:
        total = data_bytes_of(contents.mine)
        longest = Identity(_LONGEST_STEP, self._settings.rank, self._settings.world_size)
        chunk_bytes = self._settings.chunk_bytes
        start = len(
            encode_header(
                longest,
                contents.mine,
                algorithm="crc32c",
                chunk_bytes=chunk_bytes,
                checksums=[0] * num_chunks(total, chunk_bytes),
            )
        )
        return {
            "table": encode_table(contents.mine),
            "common": common_of(contents.rule, contents.tensors, self._settings.origin),
            "spans": contents.spans,
            "start": start,
        }

    def _room(self, generation: str) -> _Room:
        if generation not in self._rooms:
            assert self._contents is not None
            folder = self._settings.files.own(self._settings.node, generation)
            path = folder / rank_file_name(self._settings.rank)
            elements = data_bytes_of(self._contents.mine) // ELEMENT_BYTES
            start, pin = int(self._layout["start"]), self._settings.pin
            self._rooms[generation] = _Room(path, start, elements, pin=pin)
        return self._rooms[generation]


@dataclass(frozen=True)
class _Order:
    """What the process was asked for. `began`: by time.monotonic."""

    kind: Literal["make", "seal"]
    generations: tuple[str, ...]
    began: float
    step: int | None = None


class _Room:
    """A generation's file, mapped: a copy to it is in the file, whoever dies."""

    def __init__(self, path: Path, start: int, elements: int, *, pin: bool) -> None:
        self.path = path
        self._pinned = False
        self.tensor = torch.empty(0)
        if not elements:
            return
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            size = start + elements * ELEMENT_BYTES
            memory = mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
        finally:
            os.close(descriptor)
        self.tensor = torch.frombuffer(memory, dtype=torch.float32, offset=start, count=elements)
        self._pinned = pin and register(self.tensor.data_ptr(), size - start)

    def close(self) -> None:
        if self._pinned:
            unregister(self.tensor.data_ptr())
        self.tensor = torch.empty(0)  # the mapping ends with its last view
