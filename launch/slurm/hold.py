"""Holds a run for as long as srun carries one attempt of it: claim, heartbeat, exit code.

    python -m launch.slurm.hold RUN_FOLDER --attempt N -- srun ...

It runs beside the batch script, so there is one of it however many nodes there are; with its node
goes the job. Signals of Slurm are for the ranks: nothing here ends because of them. A stop that
somebody asked for in the run folder is passed on to the ranks; if another attempt owns the run,
srun is ended. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.node.inbox import SignalInbox
from launch.node.processes import die_with_parent, send
from launch.node.reactions import say
from launch.run.budgets import LAUNCH_FAILED
from launch.run.lease import BEAT_S, Lease
from launch.run.liveness import own_mark, write_mark
from launch.run.next_attempt import superseded
from launch.run.node_record import read_nodes
from launch.run.run_folder import locked, own
from launch.slurm.client import ask
from launch.slurm.place import job_of
from trainer.errors import Exit, LonghaulError
from trainer.records.attempt import ErrorRecord, error_record, write_first
from trainer.records.owner import refuse_if_superseded
from trainer.records.run_files import AttemptFiles, RunFiles

_TAIL = 12  # of what srun said
_STOP_AGAIN_S = 10.0


@dataclass
class Hold:
    run: RunFiles
    files: AttemptFiles
    job: str
    told: bool = False  # Slurm ends the job, or the run was asked to stop
    asked_at: float | None = None  # when the ranks were asked to stop, by us
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL))


def carry(run: RunFiles, attempt: int, argv: Sequence[str]) -> int:
    """The exit code of srun.

    Raises: Superseded, RunFolderError if this attempt is not for us to carry.
    """
    files = run.attempt(attempt)
    hold = Hold(run, files, job_of(os.environ))
    with locked(run):
        refuse_if_superseded(run.owner, attempt)
        lease = Lease.take(files)
        write_mark(files.agent, own_mark())
        own(run, attempt)
    if files.stop.exists():
        return Exit.SAVED  # asked to stop before it began
    with SignalInbox() as inbox:
        # A session of its own: what Slurm signals to the script's group is not meant for srun,
        # which would give up its tasks at once.
        srun = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=die_with_parent(),
        )
        _wait(hold, srun, lease, inbox)
        code = srun.wait()
    if code != 0 and not hold.told:
        _explain(hold, code)
    return code if code >= 0 else 128 - code


def _wait(hold: Hold, srun: subprocess.Popen[bytes], lease: Lease, inbox: SignalInbox) -> None:
    assert srun.stderr is not None
    pidfd = os.pidfd_open(srun.pid)
    said = srun.stderr.fileno()
    poll = select.poll()
    for descriptor in (pidfd, said, inbox.reader):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(BEAT_S * 1000)}
        if said in ready and not _pump(hold, said):
            poll.unregister(said)
        if inbox.read():
            hold.told = True
        if pidfd in ready:
            break
        if time.monotonic() >= lease.due:
            lease.beat()
            _look(hold, srun.pid)
    os.close(pidfd)
    while _pump(hold, said):
        continue


def _pump(hold: Hold, descriptor: int) -> bool:
    """Show what srun says; False at its end."""
    data = os.read(descriptor, 1 << 16)
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
    hold.tail.extend(data.decode("utf-8", errors="replace").splitlines())
    return bool(data)


def _look(hold: Hold, srun: int) -> None:
    """At the run folder: who owns it, and is it to stop."""
    error = superseded(hold.run, hold.files)
    if error is not None:
        hold.told = True
        write_first(hold.files.error, error_record(error, rank=0, step=None))
        send(srun, signal.SIGTERM)
        return
    late = hold.asked_at is None or time.monotonic() - hold.asked_at > _STOP_AGAIN_S
    if hold.files.stop.exists() and late:
        hold.told, hold.asked_at = True, time.monotonic()
        if not any(node.over for node in read_nodes(hold.files)):
            ask(["scancel", "--signal=TERM", hold.job])


def _explain(hold: Hold, code: int) -> None:
    """srun failed and no rank says why: it never started them, or a node was lost."""
    if hold.files.error.exists() or read_nodes(hold.files):
        return
    said = "\n".join(f"    {line}" for line in hold.tail)
    record = ErrorRecord(
        time=time.time(),
        rank=0,
        host=socket.gethostname(),
        kind=LAUNCH_FAILED,
        message=f"srun could not start the ranks (exit code {code}); it said\n{said}",
        exit_code=code if code in (Exit.REFUSED, Exit.STOP) else int(Exit.FAILED),
    )
    write_first(hold.files.error, record)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.slurm.hold")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    words = list(sys.argv[1:] if argv is None else argv)
    at = words.index("--") if "--" in words else len(words)
    given, command = parser.parse_args(words[:at]), words[at + 1 :]
    try:
        return carry(RunFiles(given.run_folder), given.attempt, command)
    except LonghaulError as e:
        say(str(e))
        return e.exit_code


if __name__ == "__main__":
    sys.exit(main())
