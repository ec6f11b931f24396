"""Starts, signals and reaps the ranks of one node, and says how the attempt ended.

    python -m launch.agent RUN_FOLDER --attempt N [--node-rank 0]

Every rank gets five variables and a log of its own. When one dies the others get a moment to
write their own errors, then they are ended: nothing of an attempt outlives its agent, however the
agent goes (launch/guard.py covers SIGKILL). Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from launch.attempts import close_attempt, read_lines_of
from launch.console import Console, open_console
from launch.failure import failure_text, record_death
from launch.guard import start_guard
from launch.inbox import SignalInbox
from launch.liveness import own_mark, write_mark
from launch.machine import LOOPBACK, check_devices, free_port
from launch.outcome import Ended, Outcome, decide, observe, write_ended
from launch.processes import FAMILY, Family, send, start
from launch.ranks_spec import RANKS_FILE, RanksSpec, read_spec
from trainer.errors import Exit, LonghaulError, RunFolderError
from trainer.records.attempt import Stop, StopCause, write_record
from trainer.records.run_files import AttemptFiles, RunFiles

PEER_GRACE_S = 5.0  # for the other ranks to write their own errors after one died
LEAVE_S = 60.0  # for the other ranks to leave after one left in order
TERM_PATIENCE_S = 2.0  # from SIGTERM to SIGKILL


@dataclass
class Ranks:
    """The ranks of this node while they run: the one mutable thing here."""

    files: AttemptFiles
    spec: RanksSpec
    tag: str
    children: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    pidfds: dict[int, int] = field(default_factory=dict)  # pidfd -> rank
    codes: dict[int, int] = field(default_factory=dict)
    deadline: float | None = None  # then everything is ended
    stopping: bool = False
    ending: bool = False  # deaths are our own doing from here on
    interrupts: int = 0
    first_failed: int | None = None

    @property
    def family(self) -> Family:
        return Family(tag=self.tag, sessions=frozenset(c.pid for c in self.children.values()))

    def sooner(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self.deadline = at if self.deadline is None else min(self.deadline, at)

    def end(self, *, patience_s: float) -> None:
        self.ending = True
        self.deadline = None
        self.family.end(patience_s=patience_s)


def run_attempt(run: RunFiles, attempt: int, *, node_rank: int = 0) -> Outcome:
    """Run the ranks of one node to their end, then decide from what they left.

    Raises: Refused before anything is started (port taken, more ranks than devices);
    RunFolderError if the attempt has no plan or another attempt owns the run.
    """
    files = run.attempt(attempt)
    spec = _spec(files)
    check_devices(spec.device, ranks_per_node=spec.ranks_per_node)
    port = free_port(spec.rendezvous_port)
    write_mark(files.agent, own_mark())
    ranks = Ranks(files=files, spec=spec, tag=f"{os.getpid()}.{time.time_ns()}")
    with ExitStack() as stack:
        inbox = stack.enter_context(SignalInbox())
        guard = start_guard(ranks.tag)
        stack.callback(guard.dismiss)
        stack.callback(lambda: ranks.end(patience_s=TERM_PATIENCE_S))  # strays, and our own errors
        console = _start(run, ranks, node_rank=node_rank, port=port)
        for child in ranks.children.values():
            guard.watch(child.pid)
        _wait(ranks, inbox, console)
        ranks.end(patience_s=TERM_PATIENCE_S)
        if console is not None:
            console.finish()
    return _conclude(run, ranks, attempt)


def _spec(files: AttemptFiles) -> RanksSpec:
    path = files.root / RANKS_FILE
    try:
        return read_spec(path)
    except FileNotFoundError:
        raise RunFolderError(f"{files.root} is no attempt of a run: no {RANKS_FILE}") from None
    except (ValueError, TypeError) as e:
        raise RunFolderError(f"{path} cannot be read ({e}); start a new attempt") from e


def _start(run: RunFiles, ranks: Ranks, *, node_rank: int, port: int) -> Console | None:
    """Start every rank; rank 0's console, if it is on this node."""
    console = None
    for local_rank in range(ranks.spec.ranks_per_node):
        rank = node_rank * ranks.spec.ranks_per_node + local_rank
        log = os.open(ranks.files.rank_log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        output = log
        if rank == 0:
            console = open_console(ranks.files.rank_log(0))
            output = console.writer
        argv = [sys.executable, "-m", ranks.spec.module, str(run.root)]
        argv += ["--attempt", str(ranks.files.number)]
        env = rank_environment(ranks.spec, rank=rank, local_rank=local_rank, port=port)
        env |= {FAMILY: ranks.tag}
        env.setdefault("TORCH_EXTENSIONS_DIR", str(_extensions(ranks.files)))
        child = start(argv, env=env, stdout=output, stderr=log)
        os.close(log)
        if console is not None and rank == 0:
            os.close(console.writer)
        ranks.children[rank] = child
        ranks.pidfds[os.pidfd_open(child.pid)] = rank
    return console


def rank_environment(spec: RanksSpec, *, rank: int, local_rank: int, port: int) -> dict[str, str]:
    """Ours plus the five variables of the contract, and what keeps vendors quiet and apart."""
    env = dict(os.environ) | {
        "RANK": str(rank),
        "WORLD_SIZE": str(spec.world_size),
        "LOCAL_RANK": str(local_rank),
        "MASTER_ADDR": LOOPBACK,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(max(1, spec.threads_per_rank)),
        "PYTHONUNBUFFERED": "1",
    }
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


def _wait(ranks: Ranks, inbox: SignalInbox, console: Console | None) -> None:
    """Until every rank has ended, by itself or by us."""
    poll = select.poll()
    poll.register(inbox.reader, select.POLLIN)
    for pidfd in ranks.pidfds:
        poll.register(pidfd, select.POLLIN)
    if console is not None:
        poll.register(console.reader, select.POLLIN)
    while ranks.pidfds:
        left = None if ranks.deadline is None else max(0.0, ranks.deadline - time.monotonic())
        for descriptor, _ in poll.poll(None if left is None else left * 1000 + 1):
            if descriptor == inbox.reader:
                for number in inbox.read():
                    _on_signal(ranks, number)
            elif descriptor in ranks.pidfds:
                poll.unregister(descriptor)
                _on_exit(ranks, ranks.pidfds.pop(descriptor))
                os.close(descriptor)
            elif console is not None and not console.pump():
                poll.unregister(descriptor)
        if ranks.deadline is not None and time.monotonic() >= ranks.deadline:
            ranks.end(patience_s=0.0 if ranks.stopping else TERM_PATIENCE_S)


def _on_signal(ranks: Ranks, number: int) -> None:
    if number == signal.SIGINT:
        ranks.interrupts += 1
        if ranks.interrupts == 2:
            _say("ending at once")
            ranks.end(patience_s=0.0)
        elif not ranks.stopping:
            _say("stopping: every rank saves at the same step; Ctrl-C again ends at once")
            _ask_to_stop(ranks, signal.SIGTERM, cause="interrupt", detail="Ctrl-C")
    elif not ranks.stopping:
        forwarded = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        cause: StopCause = "interrupt" if number == signal.SIGHUP else "scheduler"
        _ask_to_stop(ranks, forwarded, cause=cause, detail=signal.Signals(number).name)


def _ask_to_stop(ranks: Ranks, number: signal.Signals, *, cause: StopCause, detail: str) -> None:
    ranks.stopping = True
    if not ranks.files.stop.exists():  # `longhaul stop` has written its own before it signals us
        stop = Stop(cause=cause, time=time.time(), detail=detail)
        write_record(ranks.files.stop, stop)
    for rank, child in ranks.children.items():
        if rank not in ranks.codes:
            send(child.pid, number)
    ranks.sooner(ranks.spec.grace_s)


def _on_exit(ranks: Ranks, rank: int) -> None:
    code = ranks.children[rank].wait()
    ranks.codes[rank] = code
    if ranks.ending:
        return
    if code in (Exit.DONE, Exit.SAVED) or _stopped_before_it_began(ranks, code):
        ranks.sooner(LEAVE_S)
        return
    if ranks.first_failed is None:
        ranks.first_failed = rank
        record_death(ranks.files, rank, code)
    ranks.sooner(PEER_GRACE_S)


def _stopped_before_it_began(ranks: Ranks, code: int) -> bool:
    """A rank that still imports has no handler yet; the signal ends it and nothing is lost."""
    by_stop = code in (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
    return ranks.stopping and by_stop and not ranks.files.started.exists()


def _conclude(run: RunFiles, ranks: Ranks, attempt: int) -> Outcome:
    ended = Ended(
        time=time.time(),
        codes={str(rank): code for rank, code in sorted(ranks.codes.items())},
        killed_by_user=ranks.interrupts >= 2,
        first_failed_rank=ranks.first_failed,
    )
    write_ended(ranks.files.ended, ended)
    outcome = decide(observe(run, attempt), earlier=read_lines_of(run))
    close_attempt(run, attempt, outcome)
    if outcome.exit_code not in (Exit.DONE, Exit.SAVED, Exit.INTERRUPTED):
        _say(failure_text(ranks.files) or outcome.why)
    return outcome


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone; the files say it
        return


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.agent")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node-rank", type=int, default=0)
    given = parser.parse_args(argv)
    try:
        outcome = run_attempt(RunFiles(given.run_folder), given.attempt, node_rank=given.node_rank)
    except LonghaulError as e:
        _say(str(e))
        return e.exit_code
    _say(outcome.why)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
