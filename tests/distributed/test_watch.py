"""Real ranks that hang in every way there is: found in time, the right one named, stacks of all.

The ranks train; this process watches them, as an agent does.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from launch.watch.limits import WatchRules
from launch.watch.watching import POLL_S, Finding, Watch
from tests.helpers.ranks import RankFailure, RankPool
from tests.helpers.tiny_run import tiny_run
from trainer import faultpoints
from trainer.build import build_job
from trainer.dist.heartbeat import open_pulse
from trainer.dist.startup import StartUp
from trainer.dist.world import World
from trainer.loop import fit
from trainer.plan import read_plan
from trainer.records.ledger import read_ledger
from trainer.records.pulse import ENVIRONMENT
from trainer.records.run_files import RunFiles

LIMIT_S = 4.0
RULES = WatchRules(
    enabled=True,
    start_s=300,
    load_s=LIMIT_S,
    first_step_s=200,
    step_s=LIMIT_S,
    save_s=LIMIT_S,
    eval_s=LIMIT_S,
    factor=1.0,
)
CULPRIT = 1


class Never:
    def is_set(self) -> bool:
        return False


def train(world: World, root: Path, pages: list[str], what: str) -> None:
    """One rank of a run that goes wrong on one of them."""
    mine = world.place.rank == CULPRIT
    pulse = open_pulse(pages[world.place.rank])
    startup = SpinsInLoad(pulse) if what == "load" and mine else StartUp(pulse)
    startup.lap("python")
    startup.lap("imports")
    startup.lap("meet")
    if what.startswith("point="):
        faultpoints.arm(faultpoints.parse(f"{what},rank={CULPRIT}"), rank=world.place.rank)
    run = RunFiles(root)
    plan = read_plan(run.attempt(1).plan)
    job, state = build_job(plan, world, run=run, stop=Never(), startup=startup)
    if what == "the GIL" and mine:
        job = dataclasses.replace(job, stream=HoldsTheGil(job.stream, at=4))
    fit(job, state)


def do_nothing(world: World) -> None:
    pass


class SpinsInLoad(StartUp):
    def lap(self, phase: str) -> None:
        super().lap(phase)
        while phase == "build":
            pass


class HoldsTheGil:
    """A C call of a library that forgot to let go of the interpreter, on another thread."""

    def __init__(self, stream: Any, *, at: int) -> None:
        self._stream, self._at = stream, at

    def step(self, step: int) -> Any:
        if step == self._at:
            hold = ctypes.PyDLL(None).sleep
            threading.Thread(target=hold, args=(600,), daemon=True).start()
        return self._stream.step(step)

    def cursor(self, step: int) -> Any:
        return self._stream.cursor(step)


@dataclasses.dataclass
class Watched:
    watch: Watch
    run: RunFiles
    finding: Finding | None = None
    took_s: float = 0.0  # from the culprit's last beat to the finding

    def pids(self) -> dict[int, int]:
        return {r: each.beat.pid for r, each in self.watch._watched.items() if each.beat.pid}

    def until_found(self, then: Callable[[Watched], None] | None = None) -> Finding:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            found = self.watch.poll(time.monotonic())
            if found is not None:
                since = self.watch._watched[found.culprit_rank].beat.since
                self.took_s = time.monotonic() - since
                return found
            if then is not None and self.watch._watched[CULPRIT].beat.step >= 3:
                then(self)
                then = None
            time.sleep(POLL_S / 2)
        raise AssertionError("no hang was found")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("watched")


@pytest.fixture
def hang(ranks: RankPool, folder: Path) -> Iterator[Callable[..., Watched]]:
    """Trains two ranks in the background, one of which will hang; returns once it was found."""
    ended: list[Callable[[], None]] = []

    def start(
        what: str,
        *overrides: str,
        engine: str = "zero2",
        then: Any = None,
        rules: WatchRules = RULES,
    ) -> Watched:
        number = len(list((folder / "runs").glob("*")))
        wanted = (f"engine={engine}", "resources.ranks_per_node=2", "steps.total=500", *overrides)
        run = tiny_run(folder, wanted, name=f"run-{number}")
        ranks.run(1, do_nothing)  # its imports are not to be watched
        watch = Watch(run.attempt(1), ranks=[0, 1], rules=rules, world_size=2)
        pages = [watch.environment(rank)[ENVIRONMENT] for rank in (0, 1)]
        for rank in (0, 1):
            watch.started(rank, os.getpid())  # each page tells the real one
        seen = Watched(watch, run)

        def play() -> None:
            with contextlib.suppress(RankFailure):  # they are killed in the end
                ranks.run(2, train, run.root, pages, what)

        playing = threading.Thread(target=play)
        playing.start()

        def end() -> None:
            for pid in seen.pids().values():
                if pid != os.getpid():
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            playing.join()

        ended.append(end)
        seen.finding = seen.until_found(then)
        return seen

    yield start
    for end in ended:
        end()


def stop_the_culprit(seen: Watched) -> None:
    os.kill(seen.pids()[CULPRIT], signal.SIGSTOP)


HANGS: dict[str, tuple[str, tuple[str, ...], str, str]] = {
    # what goes wrong, settings, phase, a frame that must be in the culprit's stack
    "asleep in a data read": ("point=data.read,action=hang,step=3", (), "data", "_act"),
    "a busy loop in forward": ("point=step.forward,action=spin,step=3", (), "forward", "_act"),
    "before the ranks agree": ("point=step.agree,action=hang,step=3", (), "agree", "_act"),
    "before the update": ("point=step.update,action=hang,step=3", (), "update", "_act"),
    "in a save": ("point=save.begin,action=hang", ("steps.save_every=3",), "save", "_act"),
    "in an evaluation": ("point=eval.begin,action=hang", ("steps.eval_every=3",), "eval", "_act"),
    "in a load": ("load", (), "load", "lap"),
    "the GIL is held": ("the GIL", (), "", ""),
}


@pytest.mark.parametrize("case", HANGS)
def test_the_rank_that_hangs_is_found_in_time_and_named(hang: Any, case: str) -> None:
    what, overrides, phase, frame = HANGS[case]
    seen = hang(what, *overrides)
    found = seen.finding
    assert found.culprit_rank == CULPRIT, found.text
    assert found.certain, found.text
    assert found.phase == phase or not phase
    assert LIMIT_S <= seen.took_s < LIMIT_S + 60, found.text  # a second, in the drills
    assert frame in found.text
    stacks = seen.run.attempt(1).stacks
    assert sorted(p.name for p in stacks.iterdir()) == ["rank-00000.txt", "rank-00001.txt"]
    texts = [(stacks / f"rank-0000{rank}.txt").read_text() for rank in (0, 1)]
    assert all("most recent call first" in text for text in texts), texts
    assert "distributed_c10d.py" in texts[0]
    assert [e.event for e in read_ledger(seen.run.ledger(0))].count("hang") == 1


def test_a_stopped_rank_is_found_wherever_it_stands(hang: Any) -> None:
    """At stage 3 every phase has collectives."""
    seen = hang("", engine="zero3", then=stop_the_culprit)
    assert seen.finding.culprit_rank == CULPRIT, seen.finding.text
    assert "it was stopped by a signal (SIGSTOP)" in seen.finding.text
    assert "most recent call first" in seen.finding.stack


def test_a_rank_that_is_stopped_while_it_starts_is_found(hang: Any) -> None:
    seen = hang("point=start.met,action=stop", rules=dataclasses.replace(RULES, start_s=8))
    assert seen.finding.culprit_rank == CULPRIT
