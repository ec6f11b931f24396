"""An object store in a dictionary that dies at its n-th change: a put is whole or it is not.

    counts = explore(ranks=4, keep_last=1, folder=tmp_path)

The real uploaders of all ranks copy step 2 where step 1 is committed. From the n-th change on
nothing more happens (or one rank dies and the others go on); then a machine with nothing loads,
every value is compared, and the same step is uploaded again by the next attempt.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.helpers.crash_disk import Killed
from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import ThreadWorld, run_threads
from trainer.checkpoint.folder import StepFolders
from trainer.checkpoint.remote_loading import Found, load_newest
from trainer.checkpoint.remote_steps import all_folders, is_committed, stored_manifest
from trainer.checkpoint.store import CheckpointStore
from trainer.checkpoint.uploader import Uploader, UploadSettings
from trainer.dist.world import Alone, World
from trainer.errors import CheckpointError, RunFolderError, SaveFailed
from trainer.records.json_file import write_json
from trainer.records.run_files import RunFiles
from trainer.storage.local import Bytes, LocalStorage
from trainer.storage.remote import Blocks, ObjectStore

RUN_ID = "0123456789abcdef"
SHAPES = (("a", (5, 3)), ("b", (3,)))


class Objects:
    """`before(verb, path)` runs ahead of each change, and raises what it shall fail with."""

    def __init__(self, content: dict[str, bytes] | None = None) -> None:
        self.content = {} if content is None else content  # shared: several ranks, one store
        self.changes: list[tuple[str, str]] = []
        self.bytes_read = 0
        self.before: Callable[[str, Path], None] = lambda verb, path: None

    def names(self, folder: Path) -> list[str]:
        inside = f"{folder.as_posix()}/"
        found = {key[len(inside) :].split("/")[0] for key in self.content if key.startswith(inside)}
        return sorted(found)

    def sizes(self, folder: Path) -> dict[str, int]:
        whole = {name: self.size(folder / name) for name in self.names(folder)}
        return {name: size for name, size in whole.items() if size is not None}

    def size(self, path: Path) -> int | None:
        found = self.content.get(path.as_posix())
        return None if found is None else len(found)

    def read(self, path: Path, offset: int, out: Bytes) -> int:
        if path.as_posix() not in self.content:
            raise FileNotFoundError(2, "no such object", str(path))
        part = self.content[path.as_posix()][offset : offset + len(out)]
        out[: len(part)] = np.frombuffer(part, dtype=np.uint8)
        self.bytes_read += len(part)
        return len(part)

    def put(self, path: Path, blocks: Blocks, *, size: int) -> None:
        whole = b"".join(block.tobytes() for block in blocks())
        assert len(whole) == size
        self._changing("put", path)
        self.content[path.as_posix()] = whole

    def remove(self, paths: Iterable[Path]) -> None:
        for path in paths:
            self._changing("remove", path)
            self.content.pop(path.as_posix(), None)

    def _changing(self, verb: str, path: Path) -> None:
        self.before(verb, path)
        self.changes.append((verb, path.as_posix()))


def run_with(folder: Path, *steps: int, ranks: int = 1, attempt: int = 1) -> RunFiles:
    """A run folder whose disk holds these steps."""
    run = RunFiles(folder)
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    if not run.run_json.exists():
        write_json(run.run_json, {"format": 1, "run_id": RUN_ID})
    with_attempt(run, attempt)

    def be_rank(world: ThreadWorld) -> None:
        store = CheckpointStore(
            run.checkpoints, attempt=attempt, run_hash=RUN_ID, keep_last=9, chunk_bytes=64
        )
        for step in steps:
            report = store.save(world, engine(world).fill(step), step=step, training={"step": step})
            assert report.succeeded, report.problem

    for ended in run_threads(ranks, be_rank):
        assert ended is None, ended
    return run


def with_attempt(run: RunFiles, attempt: int) -> None:
    run.attempt(attempt).root.mkdir(parents=True, exist_ok=True)
    write_json(run.attempt(attempt).plan, {"attempt": attempt})


def engine(world: World) -> Any:
    return SliceEngine("zero3", world.place.rank, world.place.world_size, shapes=SHAPES)


def uploader(
    store: ObjectStore,
    run: RunFiles,
    *,
    rank: int = 0,
    ranks: int = 1,
    keep_last: int = 2,
    attempt: int = 1,
    timeout_s: float = 0.0,
    sleep: Callable[[float], None] = lambda seconds: None,
    kind: type[Uploader] = Uploader,
    may: Callable[[], None] = lambda: None,
) -> Uploader:
    settings = UploadSettings(
        url="s3://b/run",
        attempt=attempt,
        rank=rank,
        world_size=ranks,
        keep_last=keep_last,
        timeout_s=timeout_s,
    )
    return kind(store, LocalStorage(), run, settings, sleep=sleep, may=may)


def loaded(store: ObjectStore, nowhere: Path, *, world: World | None = None) -> Found | None:
    """What a machine with nothing goes on from; every value was compared."""
    world = world or Alone()
    ours = engine(world)
    disk = StepFolders(LocalStorage(), nowhere / "checkpoints")
    found = load_newest(
        world, ours, disk, store, run=RunFiles(nowhere), run_hash=RUN_ID, url="s3://b/run",
        delays_s=(),
    )  # fmt: skip
    assert found is None or not ours.differs(found.step)
    return found


@dataclass
class Counts:
    """`wrong`: neither the old step nor the new one. `stuck`: uploading again did not help.

    `half`: a step with a manifest and without one of its files.
    """

    places: int = 0
    old: int = 0
    new: int = 0
    wrong: int = 0
    half: int = 0
    stuck: int = 0


def upload(
    content: dict[str, bytes],
    run: RunFiles,
    step: int,
    *,
    ranks: int = 1,
    late: bool = False,
    victim: int | None = None,
    before: Callable[[str, Path], None] = lambda verb, path: None,
    **settings: Any,
) -> bool:
    """All ranks upload a step; whether rank 0 says that it is there.

    The others come first, or while rank 0 waits for them: where it has to mark the place before,
    or `late`. `before`: of the victim's
    changes, or of everybody's.
    """
    others = list(range(1, ranks))

    def be_rank(rank: int, sleep: Callable[[float], None]) -> bool:
        store = Objects(content)
        if victim in (None, rank):
            store.before = before
        mine = uploader(store, run, rank=rank, ranks=ranks, timeout_s=60.0, sleep=sleep, **settings)
        try:
            return mine.upload(step).step == step
        except (Killed, SaveFailed):
            return False

    def wait(seconds: float) -> None:
        if not others:
            raise SaveFailed("nobody else comes")
        be_rank(others.pop(0), lambda seconds: None)

    while others and not late and "run.json" in content:
        wait(0.0)
    return be_rank(0, wait)


def explore(
    folder: Path, *, ranks: int, keep_last: int = 1, kind: type[Uploader] = Uploader
) -> Counts:
    """Stop the upload of step 2 at every change of the store, in every way."""
    run = run_with(folder, 1, 2, ranks=ranks)
    with_attempt(run, 2)
    begun: dict[str, bytes] = {}
    assert upload(begun, run, 1, ranks=ranks, keep_last=keep_last)
    counts = Counts()
    victims: list[int | None] = [None, *(range(ranks) if ranks > 1 else ())]
    for victim, late in itertools.product(victims, (False, True)):
        for number in itertools.count():
            content, clock = dict(begun), _Clock(number)
            upload(
                content, run, 2, ranks=ranks, keep_last=keep_last, late=late, victim=victim,
                before=clock.tick, kind=kind,
            )  # fmt: skip
            counts.places += 1
            _judge(content, folder / "nowhere", counts)
            again = upload(content, run, 2, ranks=ranks, keep_last=keep_last, attempt=2)
            if not again or not _is_tidy(content, folder / "nowhere", keep_last):
                counts.stuck += 1
            if not clock.rang:
                break
    return counts


class _Clock:
    """Rings at the n-th change by those who hold it, and at every one after that."""

    def __init__(self, number: int) -> None:
        self._left = number
        self.rang = False

    def tick(self, verb: str, path: Path) -> None:
        self.rang = self.rang or self._left == 0
        self._left -= 1
        if self.rang:
            raise Killed


def _judge(content: dict[str, bytes], nowhere: Path, counts: Counts) -> None:
    store = Objects(content)
    for folder in all_folders(store):
        if is_committed(store, folder):
            there = store.sizes(folder.path)
            files = stored_manifest(store, folder).files
            counts.half += any(there.get(file.name) != file.size for file in files)
    try:
        found = loaded(store, nowhere)
    except (RunFolderError, CheckpointError):
        found = None
    if found is None or found.step not in (1, 2):
        counts.wrong += 1
    elif found.step == 1:
        counts.old += 1
    else:
        counts.new += 1


def _is_tidy(content: dict[str, bytes], nowhere: Path, keep_last: int) -> bool:
    try:
        found = loaded(Objects(content), nowhere)
    except (RunFolderError, CheckpointError):
        return False
    folders = all_folders(Objects(content))
    whole = [folder for folder in folders if is_committed(Objects(content), folder)]
    return found is not None and found.step == 2 and len(folders) == len(whole) == keep_last
