"""Every place where a save may stop, driven through the real store, and what is left loaded.

    counts = explore(Scenario("retention", before=(1,), save=2), ranks=4, asynchronous=True)

A kill: from its n-th change of the disk on, no rank does anything more; or one rank dies and the
others hear of it. A power loss at the same place: every state that the disk may be found in. Each
state is loaded by a new attempt, and every value compared; then another save must work.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.crash_disk import Disk, DiskStorage, Killed
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.verify import verify_step
from trainer.dist.world import Alone
from trainer.errors import RunFolderError

ROOT = Path("/run/checkpoints")
SHAPES = (("a", (5, 3)), ("b", (3,)))
_POINTER = ROOT / "latest.json"

MakeStorage = Callable[..., DiskStorage]


@dataclass(frozen=True)
class Scenario:
    """`before` is durable, then `save` is saved. `prepare` may spoil the disk in between."""

    name: str
    before: tuple[int, ...]
    save: int
    attempt: int = 2
    keep_last: int = 1
    prepare: Callable[[Disk], None] = lambda disk: None
    may_find: tuple[int, ...] = ()  # besides `save`; 0: nothing to load
    spoiled: int = 0  # a damaged step that the pointer may name until it was saved again

    @property
    def allowed(self) -> tuple[int, ...]:
        return (self.save, *(self.may_find or (max(self.before, default=0),)))


@dataclass
class Counts:
    """`places`: where a save was stopped. `wrong`: another step or other values than allowed.

    `nothing`: no step could be loaded though there was one. `early`: the pointer named a step that
    cannot be loaded. `stuck`: a save after it failed.
    """

    places: int = 0
    kills: int = 0
    power_losses: int = 0
    wrong: int = 0
    nothing: int = 0
    early: int = 0
    stuck: int = 0

    @property
    def bad(self) -> int:
        return self.wrong + self.nothing + self.early + self.stuck

    def add(self, other: Counts) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)


def explore(
    scenario: Scenario,
    *,
    ranks: int,
    asynchronous: bool,
    make_storage: MakeStorage = DiskStorage,
    one_rank_dies: bool = True,
) -> Counts:
    """Stop the save of `scenario` everywhere. `make_storage`: a storage with a slip in it."""
    counts = Counts()
    for disk in _stopped(scenario, ranks, asynchronous, make_storage, one_rank_dies):
        counts.places += 1
        for state in disk.after_power_loss(ignored=_unread):
            counts.power_losses += 1
            _judge(state, scenario, counts)
        counts.kills += 1
        _judge(disk, scenario, counts)
        _save_again(disk, scenario, ranks, asynchronous, counts)
    return counts


def disk_with(*steps: int) -> Disk:
    """A disk on which all is durable."""
    disk = Disk()
    DiskStorage(disk).make_folder(ROOT.parent)
    DiskStorage(disk).fsync_folder(Path("/"))
    for step in steps:
        assert save(disk, step, ranks=1, asynchronous=False, keep_last=9, attempt=1)
    return disk


def save(
    disk: Disk,
    step: int,
    *,
    ranks: int,
    asynchronous: bool,
    keep_last: int,
    attempt: int,
    storage_of: Callable[[int], DiskStorage] | None = None,
) -> bool:
    """One save by all ranks; whether all of them say that it succeeded."""

    def be_rank(world: ThreadWorld) -> bool:
        place = world.place
        storage = storage_of(place.rank) if storage_of else DiskStorage(disk)
        ours = SliceEngine("zero3", place.rank, place.world_size, shapes=SHAPES).fill(step)
        store = CheckpointStore(
            ROOT,
            storage=storage,
            attempt=attempt,
            keep_last=keep_last,
            chunk_bytes=64,
            asynchronous=asynchronous,
        )
        report = store.save(world, ours, step=step, training={"step": step})  # type: ignore[arg-type]
        store.close()
        return report.succeeded

    ended = run_threads(ranks, be_rank)
    for one in ended:
        if isinstance(one, Exception) and not isinstance(one, threading.BrokenBarrierError):
            raise one
    return all(one is True for one in ended)


def _leftovers(*attempts: int) -> Callable[[Disk], None]:
    """Half a save of the same step, of other attempts or of this one."""

    def prepare(disk: Disk) -> None:
        for attempt in attempts:
            storage = DiskStorage(disk)
            folder = ROOT / f"step-00000002.incoming-{attempt:04d}"
            storage.make_folder(folder)
            for name in ("rank-00000.safetensors", "manifest.json"):
                with storage.create(folder / name, size=0) as file:
                    file.write(0, b"half of something")

    return prepare


def _damaged(step: int) -> Callable[[Disk], None]:
    def prepare(disk: Disk) -> None:
        file = disk.file(ROOT / f"step-{step:08d}/rank-00000.safetensors")
        file.data[-1] ^= 1
        file.synced = bytes(file.data)

    return prepare


SCENARIOS = (
    Scenario("the only older step is deleted at the end", (1,), 2),
    Scenario("older steps are kept", (1,), 2, keep_last=2),
    Scenario("the first save of a run", (), 2, may_find=(0,)),
    Scenario("half a save of an older attempt", (1,), 2, prepare=_leftovers(1)),
    Scenario("half a save of this attempt", (1,), 2, prepare=_leftovers(2)),
    Scenario("saved again, for it was damaged", (1, 2), 2, keep_last=2, prepare=_damaged(2),
             may_find=(1,), spoiled=2),
)  # fmt: skip


def _stopped(
    scenario: Scenario,
    ranks: int,
    asynchronous: bool,
    make_storage: MakeStorage,
    one_rank_dies: bool,
) -> Iterator[Disk]:
    """The disk after each way to stop, until the save gets through."""
    victims: list[int | None] = [None, *(range(ranks) if one_rank_dies and ranks > 1 else ())]
    for victim in victims:
        number = 0
        while True:
            disk = disk_with(*scenario.before)
            scenario.prepare(disk)
            clock = _Clock(number)

            def storage_of(rank: int, disk: Disk = disk, clock: _Clock = clock) -> DiskStorage:
                dies = victim is None or victim == rank  # noqa: B023  (used within this turn)
                return make_storage(disk, clock.tick if dies else lambda *_: None)

            save(
                disk,
                scenario.save,
                ranks=ranks,
                asynchronous=asynchronous,
                keep_last=scenario.keep_last,
                attempt=scenario.attempt,
                storage_of=storage_of,
            )
            yield disk
            if not clock.rang:
                break
            number += 1


class _Clock:
    """Rings at the n-th change of the disk by those who hold it, and at every one after that."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._lock = threading.Lock()
        self._count = 0
        self.rang = False

    def tick(self, number: int, verb: str, path: Path) -> None:
        with self._lock:
            self._count += 1
            if self._count > self._number:
                self.rang = True
                raise Killed


def _judge(disk: Disk, scenario: Scenario, counts: Counts) -> None:
    pointed = _pointed(disk)
    ours = SliceEngine("plain", 0, 1, shapes=SHAPES)
    storage = DiskStorage(disk)
    if pointed not in (None, scenario.spoiled) and verify_step(storage, ROOT, pointed).problems:
        counts.early += 1
    store = CheckpointStore(ROOT, storage=storage, attempt=scenario.attempt + 1, chunk_bytes=64)
    try:
        found = store.load_latest(Alone(), ours)  # type: ignore[arg-type]
    except RunFolderError:
        counts.nothing += 1
        return
    step = int(found["step"]) if found else 0
    assert not [p for p in storage.opened if _unread(p.parent.name)], "it read an unfinished save"
    if step == 0 and scenario.before:
        counts.nothing += 1
    elif step not in scenario.allowed or (step and ours.differs(step)):
        counts.wrong += 1


def _save_again(
    disk: Disk, scenario: Scenario, ranks: int, asynchronous: bool, counts: Counts
) -> None:
    """The same step once more, by the next attempt, and then nothing may be left over."""
    again = save(
        disk,
        scenario.save,
        ranks=ranks,
        asynchronous=asynchronous,
        keep_last=scenario.keep_last,
        attempt=scenario.attempt + 1,
    )
    later = save(
        disk,
        scenario.save + 1,
        ranks=1,
        asynchronous=asynchronous,
        keep_last=1,
        attempt=scenario.attempt + 1,
    )
    left = [name for name in DiskStorage(disk).list(ROOT) if _unread(name)]
    if not again or not later or left:
        counts.stuck += 1


def _pointed(disk: Disk) -> int | None:
    if not DiskStorage(disk).exists(_POINTER):
        return None
    try:
        return int(json.loads(bytes(disk.file(_POINTER).data))["step"])
    except ValueError:
        return -1


def _unread(name: str) -> bool:
    return ".incoming-" in name or name.endswith((".removing", ".partial"))


def main() -> None:
    """Every scenario, waiting and in the background, by 1 and 4 ranks: a table of counts."""
    total = Counts()
    for scenario in SCENARIOS:
        for ranks, background in itertools.product((1, 4), (False, True)):
            counts = explore(scenario, ranks=ranks, asynchronous=background)
            total.add(counts)
            how = "in the background" if background else "waiting"
            print(
                json.dumps({"scenario": scenario.name, "ranks": ranks, "how": how, **vars(counts)})
            )
    print(json.dumps({"scenario": "all", **vars(total), "bad": total.bad}))


if __name__ == "__main__":
    main()
