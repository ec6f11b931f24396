"""The ranks of one node while an attempt lasts: how they are started, ended and remembered."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.machine import interface_towards
from launch.node.console import Console, open_console
from launch.node.driven import Meeting
from launch.node.oom import OomCounters
from launch.node.processes import FAMILY, Family, start
from launch.node.ranks_spec import RanksSpec
from launch.watch.watching import Finding, Watch
from trainer.records.json_file import write_json
from trainer.records.run_files import AttemptFiles

LISTENER = "LONGHAUL_RENDEZVOUS_FD"  # rank 0's: the socket at MASTER_PORT, already ours
PIDS_FILE = "pids.json"  # under the attempt's folder: rank -> process; of the first node
_INTERFACE_NAMES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Child(Protocol):
    """A rank's process, our own child however it was made."""

    @property
    def pid(self) -> int: ...
    def wait(self) -> int:
        """Its exit code, or minus the signal that ended it."""


class Starter(Protocol):
    """How a rank's process is made."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        listener: int | None,
    ) -> Child: ...


class FreshStart:
    """A new interpreter that imports everything itself."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        stdout: int,
        stderr: int,
        listener: int | None,
    ) -> subprocess.Popen[bytes]:
        kept = () if listener is None else (listener,)
        return start(
            [sys.executable, "-m", *argv], env=env, stdout=stdout, stderr=stderr, kept=kept
        )


@dataclass
class Ranks:
    """The one mutable thing of an attempt."""

    files: AttemptFiles
    spec: RanksSpec
    tag: str
    scratch: Path  # for what ranks and their vendors keep in files for a while
    spared: frozenset[int] = frozenset()  # processes of ours that outlive the attempt
    children: dict[int, Child] = field(default_factory=dict)
    pidfds: dict[int, int] = field(default_factory=dict)  # pidfd -> rank
    codes: dict[int, int] = field(default_factory=dict)
    deadline: float | None = None  # then everything is ended
    stopping: bool = False
    ending: bool = False  # deaths are our own doing from here on
    interrupts: int = 0
    told_here: bool = False  # to stop, by somebody on this node
    first_failed: int | None = None
    hung: Finding | None = None  # told to the driver, whose word is awaited
    oom: OomCounters = field(default_factory=OomCounters)

    @property
    def pids(self) -> list[int]:
        """Of the ranks that run."""
        return [c.pid for rank, c in self.children.items() if rank not in self.codes]

    @property
    def family(self) -> Family:
        sessions = frozenset(c.pid for c in self.children.values())
        return Family(tag=self.tag, sessions=sessions, spared=self.spared)

    def sooner(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self.deadline = at if self.deadline is None else min(self.deadline, at)

    def end(self, *, patience_s: float) -> None:
        self.ending = True
        self.deadline = None
        self.family.end(patience_s=patience_s)


def start_ranks(
    ranks: Ranks,
    starter: Starter,
    watch: Watch,
    *,
    run_folder: Path,
    node_rank: int,
    listener: socket.socket | None,
    meeting: Meeting,
) -> Console | None:
    """Start every rank of this node; rank 0's console, if it is here.

    `listener`: the socket at `meeting`, on the first node.
    """
    console = None
    files, spec = ranks.files, ranks.spec
    shared = common_environment(spec) | {FAMILY: ranks.tag, "TMPDIR": str(ranks.scratch)}
    if spec.nodes > 1:
        shared = _interfaces(meeting) | shared
    shared.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions(files)))
    for local_rank, rank in enumerate(spec.ranks_of(node_rank)):
        log = os.open(files.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        output, held = log, None
        env = shared | rank_variables(spec, rank=rank, local_rank=local_rank, meeting=meeting)
        env |= watch.environment(rank)
        if rank == 0:
            console = open_console(files.rank_log(0))
            output = console.writer
            assert listener is not None
            if spec.world_size > 1:
                held = listener.fileno()
                env[LISTENER] = str(held)
            else:  # it meets nobody, and what its engine makes binds the port itself
                listener.close()
        argv = [spec.module, str(run_folder), "--attempt", str(files.number)]
        child = starter.start(argv, env=env, stdout=output, stderr=log, listener=held)
        os.close(log)
        if console is not None and rank == 0:
            os.close(console.writer)
        ranks.children[rank] = child
        ranks.pidfds[os.pidfd_open(child.pid)] = rank
        watch.started(rank, child.pid)
    ranks.oom.look(ranks.pids)
    write_json(
        files.root / pids_file(node_rank), {str(r): c.pid for r, c in ranks.children.items()}
    )
    return console


def pids_file(node: int) -> str:
    return PIDS_FILE if node == 0 else f"pids-{node}.json"


def _interfaces(meeting: Meeting) -> dict[str, str]:
    """By which vendors are to reach the other nodes; the environment's own word counts."""
    name = interface_towards(meeting.host, meeting.port)
    return dict.fromkeys(_INTERFACE_NAMES, name) if name else {}


def rank_environment(
    spec: RanksSpec, *, rank: int, local_rank: int, meeting: Meeting
) -> dict[str, str]:
    """Ours plus the five variables of the contract, and what keeps vendors quiet and apart."""
    variables = rank_variables(spec, rank=rank, local_rank=local_rank, meeting=meeting)
    return common_environment(spec) | variables


def rank_variables(
    spec: RanksSpec, *, rank: int, local_rank: int, meeting: Meeting
) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": meeting.host,
        "MASTER_PORT": str(meeting.port),
        "OMP_NUM_THREADS": str(max(1, spec.threads_per_rank)),
    }


def common_environment(spec: RanksSpec) -> dict[str, str]:
    env = dict(os.environ) | {"PYTHONUNBUFFERED": "1"}
    env.pop(LISTENER, None)
    env.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")  # DeepSpeed 0.19.8 on torch 2.13
    if spec.device == "cpu":
        env["DS_ACCELERATOR"] = "cpu"
    return env


def _extensions(files: AttemptFiles) -> Path:
    """A folder for JIT-built ops of this attempt alone.

    A process killed while it builds in the shared default leaves a lock file there, on which
    every later job of the machine waits for ever.
    """
    return files.root.resolve() / "torch_extensions"


def reap_strays(own: Iterable[int]) -> None:
    """Collect what was orphaned below us; never one of `own`, whose exit codes are awaited."""
    known = set(own)
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid in known:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
        except ChildProcessError:
            return
