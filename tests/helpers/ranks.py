"""Run a function on a small world of real processes: `pool.run(2, fn, *args)`.

    pytest --fork--> server (imports torch, deepspeed, transformers once, ~5 s)
                       |--fork--> rank 0 of world 1 ... gone when the function returns
                       |--fork--> rank 1 of world 1
                       `--fork--> rank 0 of world 2 ...

A rank is a fresh copy of the warm server, so a world costs about a tenth of a second and nothing
that a vendor keeps in globals (DeepSpeed's process groups, torch's default group) reaches the next
world. The ranks of a world meet in a file: no ports. Each leaves a log and a report in its folder.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import reprlib
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar, cast

T = TypeVar("T")

_GRACE_S = 30.0  # how long the other ranks may take to notice that one has failed
_STACKS_S = 5.0  # how long the ranks may take at the deadline to write where they hang
_WARM_UP_S = 400.0  # imports took 5 s on a quiet machine, 30 s on a busy one
_LOG_LINES = 30
_LATE = "had not returned in time"


class RankFailure(AssertionError):
    """A rank raised, died or did not return in time. The text is what the first of them said."""


@dataclass(frozen=True)
class _Report:
    """What a rank leaves behind if it lives to say it."""

    ok: bool
    at: float  # time.monotonic: one clock for all processes of a machine
    value: Any  # what the function returned, or the text of its traceback


class RankPool:
    """Worlds of 1..most ranks, one after another, on processes forked from one warm server."""

    def __init__(self, folder: Path, *, most: int = 3) -> None:
        self._folder = folder
        self._most = most
        self._worlds = 0
        self._warm = False
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["tests.helpers.warm"])

    def run(
        self, world_size: int, fn: Callable[..., T], *args: Any, timeout_s: float = 400.0
    ) -> list[T]:
        """Call `fn(world, *args)` on every rank of a new world; returns the values in rank order.

        `fn` is a function at the top of a module; arguments and values are pickled. The clock
        starts when the ranks do: the server's imports do not count.
        Raises: RankFailure with the first failing rank's own traceback; every rank is gone then.
        """
        if not 1 <= world_size <= self._most:
            raise ValueError(f"a world of {world_size}: this pool runs 1 to {self._most} ranks")
        self._warm_up()
        self._worlds += 1
        folder = self._folder / f"world-{self._worlds:04d}"
        folder.mkdir(parents=True)
        call = pickle.dumps((fn, args))
        deadline = time.monotonic() + timeout_s
        ranks = [
            self._start(_be_rank, rank, world_size, folder, call, timeout_s)
            for rank in range(world_size)
        ]
        ended = _reap(ranks, folder, deadline)
        reports = [_read_report(folder, rank) for rank in range(world_size)]
        values = [report.value for report in reports if report and report.ok]
        if len(values) == world_size:
            return values
        raise RankFailure(_explain(ranks, reports, ended, folder=folder, deadline=deadline))

    def _warm_up(self) -> None:
        if self._warm:
            return
        first = self._start(_do_nothing)
        first.join(_WARM_UP_S)
        if first.exitcode != 0:
            first.kill()
            raise RankFailure(f"no rank can be started: exit code {first.exitcode}, None if late")
        self._warm = True

    def _start(self, target: Callable[..., None], *args: Any) -> BaseProcess:
        process = self._context.Process(target=target, args=args)
        process.start()
        return process


# --- in the test's process -------------------------------------------------------------------


def _reap(ranks: list[BaseProcess], folder: Path, deadline: float) -> list[float | None]:
    """Wait for all; kill what is left. Returns when each rank ended; None if it was killed."""
    ended: list[float | None] = [None] * len(ranks)
    limit = deadline + _STACKS_S
    waiting = {process.sentinel: rank for rank, process in enumerate(ranks)}
    while waiting and (left := limit - time.monotonic()) > 0:
        for sentinel in connection.wait(list(waiting), left):
            rank = waiting.pop(cast(int, sentinel))
            ended[rank] = time.monotonic()
            report = _read_report(folder, rank)
            if report is None or not report.ok:
                limit = min(limit, time.monotonic() + _GRACE_S)
    for rank in waiting.values():
        ranks[rank].kill()
    for process in ranks:
        process.join()
    return ended


def _explain(
    ranks: list[BaseProcess],
    reports: list[_Report | None],
    ended: list[float | None],
    *,
    folder: Path,
    deadline: float,
) -> str:
    """The first failure in full, what followed from it in a line each."""
    failures: list[tuple[float, int, str, str]] = []  # when, rank, headline, details
    for rank, (process, report, end) in enumerate(zip(ranks, reports, ended, strict=True)):
        log = _tail(folder / f"rank-{rank}.log")
        if report is not None and report.ok:
            continue
        if report is not None:
            failures.append((report.at, rank, "failed", report.value))
        elif end is None or end >= deadline:
            failures.append((end or time.monotonic(), rank, _LATE, log))
        else:
            # A death is seen after the complaints of the ranks that it disturbed.
            died = f"died without a word, exit code {process.exitcode}"
            failures.append((end - 1.0, rank, died, log))
    failures.sort()
    _, first, headline, details = failures[0]
    lines = [f"rank {first} of {len(ranks)} {headline}:", details.rstrip()]
    for _, rank, headline, details in failures[1:]:
        # Of ranks that hang, every one's stack: the culprit is the one that waits elsewhere.
        shown = details if headline == _LATE else details.rstrip().rpartition("\n")[2]
        lines.append(f"then rank {rank} {headline}: {shown}")
    return "\n".join(lines)


def _read_report(folder: Path, rank: int) -> _Report | None:
    path = folder / f"rank-{rank}.report"
    return pickle.loads(path.read_bytes()) if path.exists() else None


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(lines[-_LOG_LINES:])


# --- in a rank's process ---------------------------------------------------------------------


def _do_nothing() -> None:
    """Returns once the server has imported everything, because it forks nobody before."""


def _be_rank(rank: int, world_size: int, folder: Path, call: bytes, timeout_s: float) -> None:
    log = os.open(folder / f"rank-{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # If the test's process is gone, nobody else ends a rank that hangs.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, timeout_s + _GRACE_S)
    with os.fdopen(log, "w") as stacks:
        # At the deadline, all threads' stacks: nobody else can say where a rank hangs.
        faulthandler.dump_traceback_later(timeout_s, file=stacks)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        try:
            value = _in_world(rank, world_size, folder, call)
            report = pickle.dumps(_Report(True, time.monotonic(), value))
        except BaseException as e:  # a rank's SystemExit is a failure of the test too
            report = pickle.dumps(_Report(False, time.monotonic(), _own_words(e)))
    incoming = folder / f"rank-{rank}.incoming"
    incoming.write_bytes(report)
    incoming.rename(folder / f"rank-{rank}.report")
    os._exit(0)  # an interpreter that tidies up can hang on what a broken group left behind


def _in_world(rank: int, world_size: int, folder: Path, call: bytes) -> Any:
    import torch

    from trainer.dist.world import Place, leave, meet

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    fn, args = pickle.loads(call)
    world = meet(
        Place(rank, world_size, rank),
        device=torch.device("cpu"),
        init_method=f"file://{folder / 'rendezvous'}",
    )
    value = fn(world, *args)
    leave(world)
    return value


def _own_words(error: BaseException) -> str:
    """The traceback; for a bare assert also the values it was about, as pytest would show them."""
    text = "".join(traceback.format_exception(error))
    if not isinstance(error, AssertionError) or error.__traceback__ is None:
        return text
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    values = [f"  {name} = {reprlib.repr(v)}" for name, v in frames[-1].f_locals.items()]
    return text + "where\n" + "\n".join(values)
