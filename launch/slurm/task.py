"""One task of srun: the parent of one rank. Standard library only.

    srun ... python -m launch.slurm.task RUN_FOLDER --attempt N

It gives the rank its five variables and a log of its own, passes on what Slurm signals, and says
how the rank ended, in words where the rank could not. The first task of each node also watches the
ranks there. A rank that saved and left counts as a good end here: srun ends all tasks as soon as
one ends badly.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.node.failure import record_death
from launch.node.inbox import SignalInbox
from launch.node.oom import OomCounters
from launch.node.processes import FAMILY, Family, send, start
from launch.node.ranks import common_environment
from launch.node.ranks_spec import RANKS_FILE, RanksSpec, read_spec
from launch.node.reactions import PEER_GRACE_S, say
from launch.slurm.node import Link, Node, Unwatched, private_folder, remove_older
from launch.slurm.place import SlurmPlace
from launch.watch.finding import Finding, record_hang
from trainer.errors import Exit, LonghaulError, RunFolderError, WorldError
from trainer.records.attempt import Stop, StopCause, write_record
from trainer.records.run_files import AttemptFiles, RunFiles

_POLL_S = 0.25
_LOOK_S = 1.0
_LEAVE_S = 50.0  # less than --wait of srun
_BAD_END_S = 0.25  # for the others of this node to say how they ended


class Watcher(Protocol):
    @property
    def descriptors(self) -> list[int]:
        """Something can be read from one of these when there is something to do."""

    def somebody_failed(self) -> bool: ...
    def environment(self, rank: int) -> dict[str, str]: ...
    def started(self, rank: int, pid: int) -> None: ...
    def ended(self, rank: int, code: int) -> None: ...


@dataclass
class Task:
    """The one mutable thing of a task."""

    files: AttemptFiles
    place: SlurmPlace
    spec: RanksSpec
    pid: int
    told: bool = False
    failing: bool = False  # somebody failed: what remains is ended, and not mourned
    deadline: float | None = None
    oom: OomCounters = field(default_factory=OomCounters)
    looked: float = 0.0

    def sooner(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self.deadline = at if self.deadline is None else min(self.deadline, at)


def carry(run: RunFiles, attempt: int, place: SlurmPlace) -> int:
    """Run one rank to its end; the task's exit code.

    Raises: RunFolderError, WorldError if there is no such rank in the attempt.
    """
    files = run.attempt(attempt)
    spec = _spec(files, place)
    tag = f"{place.job}.{place.step}.{place.rank}"
    folder = private_folder(files, place)
    with SignalInbox() as inbox:
        node, watcher = _watcher(run, files, place, spec, folder)
        rank = place.rank
        env = _environment(spec, place, attempt, folder) | watcher.environment(rank)
        env[FAMILY] = tag
        log = os.open(files.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        argv = [sys.executable, "-m", spec.module, str(run.root), "--attempt", str(attempt)]
        child = start(argv, env=env, stdout=log, stderr=log)
        os.close(log)
        watcher.started(rank, child.pid)
        task = Task(files, place, spec, child.pid)
        _wait(task, inbox, watcher, node)
        code = child.wait()
        _hear_late(task, inbox, code)
        Family(tag=tag, sessions=frozenset({child.pid})).end(patience_s=2.0)
        _judge(task, code)
        watcher.ended(rank, code)
        result = _result(task, code)
        if node is not None:
            good = result == Exit.DONE and node.first_failed is None
            node.close(
                patience_s=_LEAVE_S if good else _BAD_END_S, exit_code=result, why="the node left"
            )
    return result


def _spec(files: AttemptFiles, place: SlurmPlace) -> RanksSpec:
    path = files.root / RANKS_FILE
    try:
        spec = read_spec(path)
    except (OSError, ValueError, TypeError) as e:
        raise RunFolderError(
            f"{path} cannot be read on {place.node_name} ({e}); is the run folder on a file "
            "system that all nodes share?"
        ) from e
    if spec.world_size != place.world_size:
        raise WorldError(f"srun started {place.world_size} tasks for {spec.world_size} ranks")
    return spec


def _watcher(
    run: RunFiles, files: AttemptFiles, place: SlurmPlace, spec: RanksSpec, folder: Path
) -> tuple[Node | None, Watcher]:
    """Of this node: in this task, if it is the first one there, or in that one."""
    try:
        if place.local_rank > 0:
            return None, Link.find(folder, place.rank)
        remove_older(files, place)
        node = Node.open(run, files, place, spec, folder)
        return node, node
    except OSError as e:
        text = f"nobody watches this rank: no watcher on {place.node_name} ({e})\n"
        with files.rank_log(place.rank).open("a", encoding="utf-8") as log:
            log.write(text)
        return None, Unwatched(files)


def _environment(spec: RanksSpec, place: SlurmPlace, attempt: int, folder: Path) -> dict[str, str]:
    host, port = place.rendezvous(spec.rendezvous_port, attempt=attempt)
    env = common_environment(spec) | {
        "RANK": str(place.rank),
        "WORLD_SIZE": str(place.world_size),
        "LOCAL_RANK": str(local_rank_of(place, os.environ)),
        "MASTER_ADDR": host,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(max(1, spec.threads_per_rank)),
        "TMPDIR": str(folder),
    }
    env.setdefault("TORCH_EXTENSIONS_DIR", str(folder / "torch_extensions"))
    return env


def local_rank_of(place: SlurmPlace, env: Mapping[str, str]) -> int:
    """The number of the rank's device: 0 where Slurm shows each task one device alone."""
    visible = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return 0 if len(visible) == 1 else place.local_rank


def _wait(task: Task, inbox: SignalInbox, watcher: Watcher, node: Node | None) -> None:
    """Until the rank has ended, by itself or by us."""
    pidfd = os.pidfd_open(task.pid)
    try:
        while True:
            poll = select.poll()
            for descriptor in [pidfd, inbox.reader, *watcher.descriptors]:
                poll.register(descriptor, select.POLLIN)
            ready = {descriptor for descriptor, _ in poll.poll(_POLL_S * 1000)}
            if pidfd in ready:
                return
            for number in inbox.read():
                _on_signal(task, number)
            _on_time(task, watcher, node)
    finally:
        os.close(pidfd)


def _on_signal(task: Task, number: int) -> None:
    """Slurm signals tasks, and (with cgroups) all that they started: twice is no harm."""
    time_is_up = number == signal.SIGUSR1
    if not task.told:
        cause: StopCause = "time_limit" if time_is_up else "scheduler"
        _on_stop(task, cause, f"{signal.Signals(number).name} from Slurm")
        task.sooner(task.spec.grace_s)
    send(task.pid, signal.SIGUSR1 if time_is_up else signal.SIGTERM)


def _on_stop(task: Task, cause: StopCause, detail: str) -> None:
    task.told = True
    if task.place.rank == 0 and not task.files.stop.exists() and not task.files.error.exists():
        write_record(task.files.stop, Stop(cause=cause, time=time.time(), detail=detail))


def _hear_late(task: Task, inbox: SignalInbox, code: int) -> None:
    """Slurm signals parent and rank alike, and the rank may have saved and left before its parent
    had read that: without a word about why, it would be a failure."""
    for number in inbox.read():
        _on_signal(task, number)
    if code == Exit.SAVED and not task.told:
        _on_stop(task, "scheduler", "a signal that its parent has not seen")


def _on_time(task: Task, watcher: Watcher, node: Node | None) -> None:
    now = time.monotonic()
    finding = node.look(now) if node is not None else None
    if finding is not None:
        _on_hang(task, finding)
    if now - task.looked >= _LOOK_S:
        task.looked = now
        task.oom.look([task.pid])
    if task.told and not task.failing and watcher.somebody_failed():
        task.failing = True  # srun ends us because of another: there is nothing to wait for
        task.sooner(PEER_GRACE_S)
    if task.deadline is not None and now >= task.deadline:
        task.failing = True
        send(task.pid, signal.SIGKILL)


def _on_hang(task: Task, finding: Finding) -> None:
    """A bad end of this task; srun then ends all others."""
    record_hang(task.files, finding)
    task.failing = True
    task.sooner(task.spec.watch.grace_s)


def _judge(task: Task, code: int) -> None:
    """Say how it ended, if that is a failure and no consequence of one."""
    if code in (Exit.DONE, Exit.SAVED) or task.failing or (task.told and code < 0):
        return
    record_death(task.files, task.place.rank, code, out_of_memory=task.oom.has_killed(task.pid))


def _result(task: Task, code: int) -> int:
    if code in (Exit.DONE, Exit.SAVED):
        return Exit.DONE
    early = task.told and code < 0 and not task.failing and not task.files.started.exists()
    if early:  # it still imported, and had no handler yet: nothing is lost
        return Exit.DONE
    return code if code > 0 else Exit.FAILED


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.task")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    try:
        place = SlurmPlace.from_env(os.environ)
        return carry(RunFiles(given.run_folder), given.attempt, place)
    except LonghaulError as e:
        say(str(e))
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
