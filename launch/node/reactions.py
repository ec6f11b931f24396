"""What an agent does when a signal comes, a rank ends, or one stands still."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from launch.node.failure import read_failure, record_death
from launch.node.processes import send
from launch.node.ranks import Ranks
from launch.run.next_attempt import RESTART_FILE
from launch.watch.watching import Finding, record_hang
from trainer.errors import Exit
from trainer.records.attempt import Stop, StopCause, read_stop, write_record
from trainer.records.run_files import RunFiles

PEER_GRACE_S = 0.25  # for the other ranks to log what they saw after one died; its words are kept
LEAVE_S = 60.0  # for the other ranks to leave after one left in order


def on_signal(ranks: Ranks, number: int) -> None:
    ranks.told_here = True
    if number == signal.SIGINT:
        ranks.interrupts += 1
        if ranks.interrupts == 2:
            say("ending at once")
            ranks.end(patience_s=0.0)
        elif not ranks.stopping:
            say("stopping: every rank saves at the same step; Ctrl-C again ends at once")
            _ask_to_stop(ranks, signal.SIGTERM, cause="interrupt", detail="Ctrl-C")
    elif not ranks.stopping:
        forwarded = signal.SIGTERM if number == signal.SIGHUP else signal.Signals(number)
        cause: StopCause = "interrupt" if number == signal.SIGHUP else "scheduler"
        _ask_to_stop(ranks, forwarded, cause=cause, detail=signal.Signals(number).name)


def on_order(ranks: Ranks, order: Mapping[str, Any]) -> None:
    """What the driver says. It has written down itself why the run is to stop."""
    what = order.get("do")
    if what == "end" and not ranks.ending:
        ranks.end(patience_s=0.0)
    elif what == "signal" and not ranks.stopping:
        ranks.stopping = True
        _forward(ranks, signal.Signals(int(order["number"])))


def on_driver_gone(ranks: Ranks) -> None:
    say("the driver is gone: every rank saves at the same step")
    _ask_to_stop(ranks, signal.SIGTERM, cause="interrupt", detail="the driver went away")


def _ask_to_stop(ranks: Ranks, number: signal.Signals, *, cause: StopCause, detail: str) -> None:
    ranks.stopping = True
    if not ranks.files.stop.exists():  # `longhaul stop` has written its own before it signals us
        stop = _stop_meant_for_us(ranks) or Stop(cause=cause, time=time.time(), detail=detail)
        write_record(ranks.files.stop, stop)
    _forward(ranks, number)


def _forward(ranks: Ranks, number: signal.Signals) -> None:
    for rank, child in ranks.children.items():
        if rank not in ranks.codes:
            send(child.pid, number)
    ranks.sooner(ranks.spec.grace_s)


def _stop_meant_for_us(ranks: Ranks) -> Stop | None:
    """What was written beside the attempt before, when this one was just being made.

    An attempt that was asked to stop is never followed by one that nobody asked for.
    """
    files = ranks.files
    if not (files.root / RESTART_FILE).exists():
        return None
    try:
        found = read_stop(RunFiles(files.root.parent.parent).attempt(files.number - 1).stop)
    except (ValueError, TypeError):
        return None
    # For a machine that came or went: this attempt is the answer to it.
    return None if found is not None and found.cause in ("resize", "drain") else found


def on_exit(ranks: Ranks, rank: int) -> None:
    child = ranks.children[rank]
    code = ranks.codes[rank] = child.wait()
    if ranks.ending:
        return
    if code in (Exit.DONE, Exit.SAVED) or _stopped_before_it_began(ranks, code):
        ranks.sooner(LEAVE_S)
        return
    if ranks.first_failed is None or _was_killed_before(ranks, code):
        ranks.first_failed = rank
        killed = ranks.oom.has_killed(child.pid)
        record_death(ranks.files, rank, code, out_of_memory=killed, own=ranks.children)
    ranks.sooner(PEER_GRACE_S)


def _was_killed_before(ranks: Ranks, code: int) -> bool:
    """Whether the first that was seen to end only says that this one is gone.

    An agent that got no processor for a while sees all deaths at once, in any order. An abort is
    how vendors end a rank whose peer is gone: it names nobody.
    """
    known = read_failure(ranks.files)
    echoes = known is not None and known.is_echo and known.rank == ranks.first_failed
    return code < 0 and code != -signal.SIGABRT and echoes


def _stopped_before_it_began(ranks: Ranks, code: int) -> bool:
    """A rank that still imports has no handler yet; the signal ends it and nothing is lost."""
    by_stop = code in (-signal.SIGTERM, -signal.SIGUSR1, -signal.SIGUSR2)
    return ranks.stopping and by_stop and not ranks.files.started.exists()


def on_hang(ranks: Ranks, finding: Finding) -> None:
    """Its stacks are written; no rank of the attempt can go on without it."""
    record_hang(ranks.files, finding)
    ranks.first_failed = finding.culprit_rank
    ranks.sooner(ranks.spec.watch.grace_s)  # not SIGTERM: it means save and stop


def say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # the terminal is gone; the files say it
        return
