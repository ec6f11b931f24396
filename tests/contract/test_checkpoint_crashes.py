"""A save may end at any operation, by an error, a kill or a power loss: old or new, never half."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.crash_disk import Disk, DiskStorage
from tests.helpers.crash_model import ROOT, SCENARIOS, SHAPES, Counts, Scenario, disk_with, explore
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.store import CheckpointStore
from trainer.dist.world import Alone
from trainer.errors import TooManyFailedSaves
from trainer.reports import SaveReport


def store(disk: Disk, *, attempt: int = 1, keep_last: int = 1, **fault: object) -> CheckpointStore:
    storage = DiskStorage(disk, **fault)  # type: ignore[arg-type]
    return CheckpointStore(
        ROOT, storage=storage, attempt=attempt, keep_last=keep_last, chunk_bytes=64
    )


def engine() -> SliceEngine:
    return SliceEngine("plain", 0, 1, shapes=SHAPES)


def saved(disk: Disk, step: int, **settings: object) -> SaveReport:
    checkpoints = store(disk, **settings)  # type: ignore[arg-type]
    return checkpoints.save(Alone(), engine().fill(step), step=step, training={"step": step})


def loaded(disk: Disk) -> int:
    """The step that a new attempt goes on from; every value was compared."""
    ours = engine()
    found = store(disk, attempt=2).load_latest(Alone(), ours)
    step = int(found["step"]) if found else 0
    assert not step or not ours.differs(step)
    return step


def operations_of_a_save() -> int:
    disk = disk_with(1)
    storage = DiskStorage(disk)
    checkpoints = CheckpointStore(ROOT, storage=storage, keep_last=1, chunk_bytes=64)
    checkpoints.save(Alone(), engine().fill(2), step=2, training={})
    return len(storage.operations)


def stop_at(number: int, error: BaseException):  # type: ignore[no-untyped-def]
    """Fail from this operation on, as a dead process or a full disk does."""

    def before(done: int, verb: str, path: Path) -> None:
        if done >= number:
            raise error

    return before


EVERY_OPERATION = range(operations_of_a_save())


def test_a_save_is_a_sequence_of_operations_worth_breaking() -> None:
    assert len(EVERY_OPERATION) > 20


# --- every place to stop ---------------------------------------------------------------------


# Four ranks where ranks make a difference; `python -m tests.helpers.crash_model` explores all.
CASES = [
    *((scenario, 1, background) for scenario in SCENARIOS for background in (False, True)),
    (SCENARIOS[0], 4, False),
    (SCENARIOS[0], 4, True),
    (SCENARIOS[2], 4, True),
    (SCENARIOS[4], 4, True),
]


@pytest.mark.parametrize(
    ("scenario", "ranks", "background"),
    CASES,
    ids=lambda value: value.name if isinstance(value, Scenario) else None,
)
def test_wherever_a_save_stops_the_old_step_or_the_new_one_is_loaded(
    scenario: Scenario, ranks: int, background: bool
) -> None:
    counts = explore(scenario, ranks=ranks, asynchronous=background)
    assert counts.places > 15 * (1 if ranks == 1 else 4)
    assert counts.power_losses > counts.places
    assert counts.bad == 0, counts


class NoFsync(DiskStorage):
    """Forgets to make files durable."""

    def create(self, path: Path, *, size: int) -> Any:
        file = super().create(path, size=size)
        file.fsync = lambda: None  # type: ignore[method-assign]
        return file


class NoFolderFsync(DiskStorage):
    """Forgets to make names durable."""

    def fsync_folder(self, path: Path) -> None:
        return


SLIPS: dict[str, tuple[type[DiskStorage], Callable[[Counts], int]]] = {
    "files are not fsynced": (NoFsync, lambda c: c.nothing),
    "folders are not fsynced": (NoFolderFsync, lambda c: c.nothing),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_storage_that_forgets_to_fsync_is_found_out(slip: str) -> None:
    storage, lost = SLIPS[slip]
    counts = explore(SCENARIOS[0], ranks=1, asynchronous=True, make_storage=storage)
    assert lost(counts) > 0


def test_a_pointer_that_moves_first_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = StepFolders.publish

    def slip(folders: StepFolders, incoming: Path, step: int, manifest: bytes, **how: Any) -> Path:
        folders.point(step, "")
        return publish(folders, incoming, step, manifest, **how)

    monkeypatch.setattr(StepFolders, "publish", slip)
    assert explore(SCENARIOS[1], ranks=1, asynchronous=True).early > 0


def test_old_steps_that_are_deleted_first_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    publish = StepFolders.publish

    def slip(folders: StepFolders, incoming: Path, step: int, manifest: bytes, **how: Any) -> Path:
        for old in folders.steps():
            folders.remove(old)
        return publish(folders, incoming, step, manifest, **how)

    monkeypatch.setattr(StepFolders, "publish", slip)
    assert explore(SCENARIOS[0], ranks=1, asynchronous=True).nothing > 0


def test_a_manifest_for_a_file_that_is_gone_is_never_published() -> None:
    """Whatever ranks say of their files, what lies in the folder decides."""
    disk = disk_with(1)

    def losing(number: int, verb: str, path: Path) -> None:
        if path.name == "manifest.json" and verb == "create":
            raise AssertionError("it was published")

    class Losing(DiskStorage):
        def list(self, path: Path) -> list[str]:
            return [n for n in super().list(path) if n != "rank-00000.safetensors"]

    checkpoints = CheckpointStore(ROOT, storage=Losing(disk, losing), chunk_bytes=64)
    report = checkpoints.save(Alone(), engine().fill(2), step=2, training={})
    assert "1 written files are gone, rank-00000.safetensors for one" in report.problem


# --- what is left behind ---------------------------------------------------------------------


def test_a_save_that_returned_survives_a_power_loss() -> None:
    disk = disk_with(1)
    assert saved(disk, 2).succeeded
    assert {loaded(state) for state in disk.after_power_loss()} == {2}


def test_a_first_save_that_returned_survives_a_power_loss() -> None:
    disk = disk_with(1)
    assert {loaded(state) for state in disk.after_power_loss()} == {1}


@pytest.mark.parametrize("number", EVERY_OPERATION)
def test_an_error_at_any_operation_is_reported_and_the_next_save_works(number: int) -> None:
    disk = disk_with(1)
    full = OSError(errno.ENOSPC, "No space left on device")
    broken = DiskStorage(disk, stop_at(number, full))
    checkpoints = CheckpointStore(ROOT, storage=broken, keep_last=1, chunk_bytes=64)
    report = checkpoints.save(Alone(), engine().fill(2), step=2, training={"step": 2})
    assert "No space left on device" in report.problem
    for state in disk.after_power_loss():
        assert loaded(state) in ((2,) if report.succeeded else (1, 2))
    broken.before = lambda number, verb, path: None
    again = checkpoints.save(Alone(), engine().fill(3), step=3, training={"step": 3})
    assert again.succeeded
    assert loaded(disk) == 3


@pytest.mark.parametrize("broken_rank", [0, 1, 2])
@pytest.mark.parametrize("verb", ["create", "write", "fsync"])
def test_a_full_disk_on_one_rank_is_a_failed_save_on_all(broken_rank: int, verb: str) -> None:
    disk = disk_with(1)

    def save(world: ThreadWorld) -> SaveReport:
        def before(number: int, what: str, path: Path) -> None:
            if what == verb and path.name == f"rank-{broken_rank:05d}.safetensors":
                raise OSError(errno.ENOSPC, "No space left on device")

        place = world.place
        ours = SliceEngine("zero3", place.rank, place.world_size, shapes=SHAPES).fill(2)
        return store(disk, before=before).save(world, ours, step=2, training={"step": 2})

    reports = run_threads(3, save)
    said = {(r.succeeded, r.problem) for r in reports if isinstance(r, SaveReport)}
    assert len(reports) == 3
    assert len(said) == 1
    ((succeeded, problem),) = said
    assert not succeeded
    assert problem.startswith(f"step 2 was not saved: rank {broken_rank}: ")
    assert "No space left on device" in problem
    assert DiskStorage(disk).list(ROOT) == ["latest.json", "step-00000001"]  # room given back
    assert loaded(disk) == 1


def test_failed_saves_in_a_row_stop_the_run_on_all_ranks() -> None:
    disk = disk_with()

    def before(number: int, verb: str, path: Path) -> None:
        if verb == "write" and path.name == "rank-00001.safetensors":
            raise OSError(errno.EIO, "Input/output error")

    def save(world: ThreadWorld) -> list[bool]:
        place = world.place
        ours = SliceEngine("zero1", place.rank, place.world_size, shapes=SHAPES)
        storage = DiskStorage(disk, before)
        checkpoints = CheckpointStore(ROOT, storage=storage, max_failed_saves=2)
        failed_once = checkpoints.save(world, ours, step=1, training={}).succeeded
        storage.before = lambda number, verb, path: None
        worked = checkpoints.save(world, ours, step=2, training={}).succeeded  # starts over
        storage.before = before
        failed_again = checkpoints.save(world, ours, step=3, training={}).succeeded
        assert [failed_once, worked, failed_again] == [False, True, False]
        with pytest.raises(TooManyFailedSaves, match="2 saves in a row failed"):
            checkpoints.save(world, ours, step=4, training={})
        return [failed_once, worked, failed_again]

    assert run_threads(2, save) == [[False, True, False]] * 2


def test_an_engine_that_fails_on_one_rank_is_a_failed_save_on_all() -> None:
    disk = disk_with(1)

    def save(world: ThreadWorld) -> SaveReport:
        place = world.place
        ours = SliceEngine("zero3", place.rank, place.world_size, shapes=SHAPES).fill(2)
        if place.rank == 1:
            ours.held.pop()
        return store(disk).save(world, ours, step=2, training={})

    reports = run_threads(2, save)
    assert {r.problem for r in reports if isinstance(r, SaveReport)} == {
        "step 2 was not saved: the ranks together hold 2 elements of exp_avg_sq of 'b', which has 3"
    }
    assert loaded(disk) == 1
