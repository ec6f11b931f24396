"""Saves that go on while training does: copied at a step's boundary, written by another process.

    begin    all: copy what I hold, take every number by value; the writers write, fsync
    finish   all files are durable: rank 0's writer publishes (manifest, rename, pointer, retention)
    finish   it has: the report

Nobody waits in between: each rank says with every step whether its own part has ended, and `finish`
is called when all have. Whatever goes wrong on any rank is a failed save on all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainer.checkpoint.agreement import Disagreed, agree, hear
from trainer.checkpoint.contents import Contents, agree_on_contents
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.link import Link
from trainer.checkpoint.orders import Discard, WriteFile
from trainer.checkpoint.saving import SaveSettings, already_whole, encoded
from trainer.checkpoint.staging import NUM_BUFFERS, NoRoom, Staging
from trainer.dist.world import World
from trainer.engine.base import Engine
from trainer.errors import CheckpointError, SaveFailed
from trainer.faultpoints import faultpoint
from trainer.records.fragment import Fragment
from trainer.reports import SaveReport

WhenBusy = Literal["wait", "skip"]

_EXIT_PATIENCE_S = 15.0  # without progress, once training has ended
_LAST_PATIENCE_S = 5.0  # after a save was given up at the end
_LONGEST_WAIT_S = 0.5  # between two collectives, so that no rank waits for another in one


@dataclass
class _Save:
    """One save under way. Seconds; `began` by time.monotonic."""

    step: int
    training: str
    contents: Contents
    buffer: int
    checksums: tuple[int, ...] | None
    began: float
    stall_s: float = 0.0
    waited_s: float = 0.0
    bytes: int = 0
    state: Literal["writing", "publishing", "discarding"] = "writing"


class BackgroundSaves:
    """At most as many saves under way as there are buffers, one of them with the writers.

    All ranks go through the same states, for every change of state is a collective.
    """

    def __init__(
        self,
        folders: StepFolders,
        settings: SaveSettings,
        *,
        rank: int,
        link: Link,
        staging: Staging,
        when_busy: WhenBusy,
    ) -> None:
        self._folders = folders
        self._settings = settings
        self._rank = rank
        self._link = link
        self._staging = staging
        self._when_busy = when_busy
        self._under_way: deque[_Save] = deque()
        self._contents: Contents | None = None
        self.parent: int | None = None  # the checkpoint that was saved or loaded last
        self._is_ending = False
        self.skipped = 0

    def prepare(self, world: World, engine: Engine) -> None:
        """Before the first step: make the buffers, start the writer, agree on what is written.

        Collective. What fails here fails the first save.
        """
        with contextlib.suppress(Disagreed):
            self._contents = agree_on_contents(
                world, engine, known=None, held=lambda: self._make_room(engine)
            )

    def begin(
        self,
        world: World,
        engine: Engine,
        *,
        step: int,
        training: Mapping[str, Any],
    ) -> list[SaveReport]:
        """Copy the state and go on; reports of what ended meanwhile. Collective."""
        began = time.monotonic()
        if len(self._under_way) == NUM_BUFFERS and self._when_busy == "skip":
            return [self._skipped(step)]
        reports = self.settle(world, NUM_BUFFERS - 1)
        waited_s = time.monotonic() - began
        try:
            whole = already_whole(world, self._folders, step)
            if whole is not None:
                self.parent = step
                stall_s = time.monotonic() - began
                return [*reports, self._report(step, True, bytes=whole, stall_s=stall_s)]
            save = self._stage(world, engine, step, training, began)
        except Disagreed as e:
            stall_s = time.monotonic() - began
            return [*reports, self._failed(step, e, stall_s=stall_s, waited_s=waited_s)]
        self._under_way.append(save)
        if len(self._under_way) == 1:
            self._give(world, save)
        save.waited_s, save.stall_s = waited_s, time.monotonic() - began
        faultpoint("save.staged")
        return reports

    def written(self) -> bool:
        """Whether this rank's part of what the oldest save waits for has ended."""
        if not self._under_way:
            return False
        if self._under_way[0].state != "writing" and self._rank != 0:
            return True
        return self._link.ended()

    def finish(self, world: World) -> list[SaveReport]:
        """Bring the oldest save one state further; every rank has `written`. Collective."""
        save, started = self._under_way[0], time.monotonic()
        if save.state == "discarding":  # whether that worked or not: what is left is reaped later
            return self._next(world)
        try:
            if save.state == "publishing":
                return [self._published(world, save), *self._next(world)]
            self._publish(world, save)
            save.stall_s += time.monotonic() - started
            return []
        except Disagreed as e:
            stall_s = save.stall_s + time.monotonic() - started
            report = self._failed(save.step, e, stall_s=stall_s, waited_s=save.waited_s)
            if self._is_ending:  # the next attempt gives the room back
                return [report, *self._next(world)]
            # Nobody may write the next step's files while what is left of this one is removed.
            save.state = "discarding"
            if self._rank == 0:
                self._link.give(Discard(step=save.step, attempt=self._settings.attempt))
            return [report]

    def settle(self, world: World, left: int = 0) -> list[SaveReport]:
        """Wait until no more than `left` saves are under way. Collective."""
        reports: list[SaveReport] = []
        wait_s = 0.004
        while len(self._under_way) > left:
            self._link.wait(wait_s)
            if world.sum([float(self.written())])[0] == world.place.world_size:
                reports += self.finish(world)
                wait_s = 0.004
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
        return reports

    def drain(self, world: World) -> list[SaveReport]:
        """`settle`, where training ends: a stuck writer is given up early. Collective."""
        self._is_ending = True
        self._link.hurry(_EXIT_PATIENCE_S)
        reports = self.settle(world)
        if not all(report.succeeded for report in reports):
            self._link.hurry(_LAST_PATIENCE_S)
        return reports

    def go_on(self) -> None:
        """Training goes on after all, with the usual patience."""
        self._is_ending = False
        self._link.hurry(None)

    def close(self) -> None:
        """End the writer and give the memory back. Not collective; never hangs."""
        self._link.close()
        self._staging.close()

    # --- the states of a save ----------------------------------------------------------------

    def _stage(
        self, world: World, engine: Engine, step: int, training: Mapping[str, Any], began: float
    ) -> _Save:
        used = {save.buffer for save in self._under_way}
        buffer = next(i for i in range(NUM_BUFFERS) if i not in used)
        taken: list[tuple[int, ...] | None] = []
        texts: list[str] = []

        def hold() -> tuple[Fragment, ...]:
            texts.append(encoded(training))
            fragments, checksums = self._copy(engine, buffer)
            taken.append(checksums)
            return fragments

        contents = agree_on_contents(world, engine, known=self._contents, held=hold)
        self._contents = contents
        return _Save(step, texts[0], contents, buffer, taken[0], began)

    def _copy(
        self, engine: Engine, buffer: int
    ) -> tuple[tuple[Fragment, ...], tuple[int, ...] | None]:
        known = self._contents.mine if self._contents else None
        if not self._staging.descriptors:
            self._make_room(engine)
        try:
            return self._staging.copy(engine, buffer, known=known)
        except NoRoom as e:
            if self._under_way:
                said = "the engine holds more than before; the next save has room"
                raise CheckpointError(said) from e
            self._make_room(engine)
            return self._staging.copy(engine, buffer, known=known)

    def _make_room(self, engine: Engine) -> tuple[Fragment, ...]:
        """The buffers, and a writer that has them. Raises: OSError, CheckpointError."""
        plan = self._staging.reserve(engine)
        self._link.ready(self._staging)
        return plan

    def _give(self, world: World, save: _Save) -> None:
        order = WriteFile(
            step=save.step,
            attempt=self._settings.attempt,
            rank=self._rank,
            world_size=world.place.world_size,
            chunk_bytes=self._settings.chunk_bytes,
            buffer=save.buffer,
            checksums=save.checksums,
        )
        self._link.give(order, table=save.contents.mine)

    def _publish(self, world: World, save: _Save) -> None:
        """The verdict of all ranks on their files; then rank 0's writer has the order to publish.

        Raises: Disagreed.
        """

        def mine() -> list[Any]:
            written = self._link.result()
            return [written["size"], written["digest"], save.contents.spans]

        def decide(rows: Sequence[Any]) -> int:
            order = self._settings.publication(
                save.contents, save.step, training=save.training, parent=self.parent, rows=rows
            )
            self._link.give(order)
            return sum(size for size, _, _ in rows)

        save.bytes = int(agree(world, mine, decide))
        save.state = "publishing"

    def _published(self, world: World, save: _Save) -> SaveReport:
        started = time.monotonic()
        said = hear(world, lambda: self._publication(save))
        self.parent = save.step
        return self._report(
            save.step,
            True,
            bytes=save.bytes,
            problem=str(said["problem"]),
            stall_s=save.stall_s + time.monotonic() - started,
            waited_s=save.waited_s,
            write_s=said["write_s"],
        )

    def _publication(self, save: _Save) -> dict[str, Any]:
        """Rank 0's: its writer's clock is its own, that of the machine."""
        try:
            said = self._link.result()
            return {"problem": said["problem"], "write_s": said["durable"] - save.began}
        except SaveFailed as e:
            raise SaveFailed(f"rank 0, publishing: {e}") from e

    def _next(self, world: World) -> list[SaveReport]:
        """The oldest save is over: the one that was staged meanwhile goes to the writers."""
        self._under_way.popleft()
        if self._under_way:
            self._give(world, self._under_way[0])
        return []

    def _failed(self, step: int, why: Disagreed, **times: float) -> SaveReport:
        return self._report(step, False, problem=f"step {step} was not saved: {why}", **times)

    def _skipped(self, step: int) -> SaveReport:
        self.skipped += 1
        oldest = self._under_way[0]
        problem = (
            f"step {step} was not saved: step {oldest.step} is still being written after "
            f"{time.monotonic() - oldest.began:.0f} s and both buffers are taken; "
            f"{self.skipped} skipped so far (checkpoint.when_busy=skip)"
        )
        return self._report(step, False, problem=problem, skipped=True)

    def _report(self, step: int, succeeded: bool, **said: Any) -> SaveReport:
        values = {"bytes": 0, "stall_s": 0.0, **said}
        path = str(self._folders.step(step))
        return SaveReport(step=step, succeeded=succeeded, path=path, **values)
