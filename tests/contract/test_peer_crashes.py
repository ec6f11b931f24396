"""Wherever ranks die that keep a state in memory: the state before or the new one is there, whole.

Two nodes of one rank, each the other's neighbour. A child keeps a third state where two lie already
and is killed at each line of the code that writes it, on both sides of the connection: the rank's
copy, its process, the neighbour that takes it. Memory outlives a killed process as it is, so there
is no power loss to play. Then every combination of what the two ranks leave behind is judged, with
both nodes alive and with either of them gone.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
from itertools import product
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from tests.helpers.slice_engine import SliceEngine
from tests.helpers.thread_world import run_threads
from trainer.checkpoint.contents import Contents, agree_on_contents
from trainer.checkpoint.held import plan_fragments
from trainer.checkpoint.peer.choice import Copy, copy_of, whole_states
from trainer.checkpoint.peer.line import Line
from trainer.checkpoint.peer.part import decode
from trainer.checkpoint.peer.process import Keeper
from trainer.checkpoint.peer.saves import KeepSettings, PeerSaves
from trainer.checkpoint.peer.wire import Door, check_file, new_token
from trainer.checkpoint.wire import said_of
from trainer.dist.world import Alone
from trainer.records.memory_files import MemoryFiles

RUN = "run-1"
GENERATIONS = ("0001.0", "0001.1")
TRACED = ("peer/saves.py", "peer/process.py", "peer/wire.py", "staging.py")


class InPlace:
    """The process beside the rank, in this one."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._said: list[dict[str, Any]] = []

    def give(self, order: dict[str, Any]) -> None:
        self._said.append(said_of(lambda: self._keeper.do(dict(order))))

    def said(self) -> dict[str, Any] | None:
        return self._said.pop(0) if self._said else None

    def close(self) -> None:
        return


def contents_of_both() -> list[Contents]:
    def agreed(world: Any) -> Contents:
        engine: Any = SliceEngine("zero1", world.place.rank, 2)
        return agree_on_contents(world, engine, known=None, held=lambda: plan_fragments(engine))

    found = run_threads(2, agreed)
    assert not [e for e in found if isinstance(e, BaseException)], found
    return found  # type: ignore[return-value]


def memory(root: Path, node: int) -> MemoryFiles:
    return MemoryFiles(root / f"host-{node}", RUN)


def keeper_of(root: Path, rank: int) -> Keeper:
    """With the neighbour's door open beside it."""
    token, listener = new_token(), socket.create_server(("127.0.0.1", 0))
    there = memory(root, 1 - rank)
    there.folder.mkdir(exist_ok=True)
    there.enter(1 - rank)
    door = Door(there, 1 - rank, token)
    threading.Thread(target=door.serve, args=(listener,), daemon=True).start()
    memory(root, rank).folder.mkdir(exist_ok=True)
    opening = {"folder": str(root / f"host-{rank}"), "run_id": RUN, "node": rank, "rank": rank}
    opening |= {"world_size": 2, "attempt": 1, "run_hash": RUN, "chunk_bytes": 4096, "copies": 2}
    opening |= {"neighbour": listener.getsockname(), "token": token, "is_leader": True}
    return Keeper(opening)


def keep_states(
    root: Path, rank: int, contents: Contents, *, steps: range, kill_at: int | None
) -> None:
    """What a rank does for these states; the first time with room to make."""
    settings = KeepSettings(
        every=1,
        files=memory(root, rank),
        node=rank,
        rank=rank,
        world_size=2,
        attempt=1,
        chunk_bytes=4096,
        origin={},
    )
    engine: Any = SliceEngine("zero1", rank, 2)
    saves = PeerSaves(settings, Line(InPlace(keeper_of(root, rank))))
    saves._contents, saves._layout = contents, saves._layout_of(contents)
    if steps[0] == 1:
        saves._make(GENERATIONS, keep=())
    else:  # as after the states before
        saves._made, saves._whole, saves.step = [*GENERATIONS], GENERATIONS[1], steps[0] - 1
    told = (float(steps[0] == 1), 1.0)
    count = _Count(kill_at)
    for step in steps:
        engine.fill(step)
        with count:
            saves.keep(
                Alone(), engine, step=step, told=told, training=lambda step=step: {"step": step}
            )
        told = (1.0, 1.0)
    saves.said()
    assert saves._line.problem == "", saves._line.problem
    (root / "lines.json").write_text(json.dumps(count.ends_of_each()))


class _Count:
    """Lines of the traced files, in all threads; SIGKILL before one of them is run."""

    def __init__(self, kill_at: int | None) -> None:
        self.lines = 0
        self._kill_at = kill_at
        self._seen: dict[tuple[str, int], list[int]] = {}

    def ends_of_each(self) -> list[int]:
        """When each line was run first and last: what a loop does in between is no other thing."""
        return sorted({n for seen in self._seen.values() for n in (seen[0], seen[-1])})

    def __enter__(self) -> None:
        threading.settrace(self._called)
        sys.settrace(self._called)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        threading.settrace(None)  # type: ignore[arg-type]

    def _called(self, frame: FrameType, event: str, _: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(TRACED) else None

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            self.lines += 1
            here = (frame.f_code.co_filename, frame.f_lineno)
            self._seen.setdefault(here, []).append(self.lines)
            if self.lines == self._kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        return self._line


def in_a_child(root: Path, rank: int, contents: Contents, **how: Any) -> bool:
    """Whether it came to its end."""
    child = os.fork()
    if child == 0:
        try:
            keep_states(root, rank, contents, **how)
            os._exit(0)
        except BaseException as e:
            print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL, status
    return status == 0


Left = frozenset[tuple[int, str, int]]  # node, place, step of each file that counts


def left_behind(root: Path, rank: int) -> tuple[Left, dict[tuple[int, str, int], Copy]]:
    """What counts, each of it looked at: no part may say what its file is not."""
    copies = {}
    for node in (0, 1):
        files = memory(root, node)
        for path in files.parts():
            part = decode(path.read_bytes())
            file = path.with_suffix(".safetensors")
            check_file(file, part)
            ours = SliceEngine("zero1", rank, 2).fill(part.step)
            wanted = np.concatenate([held.values.numpy() for held in ours.held])
            assert file.read_bytes().endswith(wanted.tobytes()), (path, part.step)
            place = str(path.parent.relative_to(files.root))
            copies[node, place, part.step] = copy_of(part, leader=node, place=place)
    return frozenset(copies), copies


def ends(
    root: Path, rank: int, contents: Contents, *, one_of: int = 1
) -> tuple[dict[Left, list[Copy]], int]:
    """What may be left, by what counts; and how many kills that were."""
    before, folder = root / f"before-{rank}", root / f"after-{rank}"
    before.mkdir()
    assert in_a_child(before, rank, contents, steps=range(1, 3), kill_at=None)
    shutil.copytree(before, folder)
    assert in_a_child(folder, rank, contents, steps=range(3, 4), kill_at=None)
    lines = json.loads((folder / "lines.json").read_text())[::one_of]
    found: dict[Left, list[Copy]] = {}
    for number in (*lines, None):  # None: it comes to its end
        shutil.rmtree(folder)
        shutil.copytree(before, folder)
        in_a_child(folder, rank, contents, steps=range(3, 4), kill_at=number)
        left, copies = left_behind(folder, rank)
        found.setdefault(left, list(copies.values()))
    return found, len(lines)


def test_wherever_ranks_die_a_whole_state_is_left(tmp_path: Path) -> None:
    both = contents_of_both()
    first, kills = ends(tmp_path, 0, both[0])
    second, _ = ends(tmp_path, 1, both[1], one_of=6)  # the same code
    assert kills > 100
    assert len(first) >= 4  # as before, its own given up, its own new, the neighbour's too
    newest = set()
    for one, other in product(first.values(), second.values()):
        for alive in ({0, 1}, {0}, {1}):
            copies = [copy for copy in (*one, *other) if copy.leader in alive]
            states = whole_states(copies, run_hash=RUN, is_void=lambda _: False)
            assert states, (alive, one, other)
            assert states[0].step in (2, 3)
            newest.add(states[0].step)
    assert newest == {2, 3}
