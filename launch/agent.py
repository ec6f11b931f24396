"""Starts, signals and reaps the ranks of one node; after a failure, starts them again.

    python -m launch.agent RUN_FOLDER --attempt N
    python -m launch.agent RUN_FOLDER --attempt N --node-rank K --driven ADDRESS

Every rank gets five variables and a log of its own. When one dies the others get a moment to
write their own errors, then they are ended: nothing of an attempt outlives its agent, however the
agent goes (launch/node/guard.py covers SIGKILL). What follows is decided from what the ranks left
(launch/outcome.py); if it is another attempt, its ranks start on this node at once. Of several
nodes each has an agent, and a driver decides (launch/driver.py): then stdin brings its orders and
ADDRESS is where this node can be reached. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launch.machine import LOOPBACK, check_devices, rendezvous_socket
from launch.node.conclusion import conclude
from launch.node.console import Console
from launch.node.driven import LOOK_S, DriverLink, Meeting
from launch.node.guard import Guard, start_guard
from launch.node.inbox import SignalInbox
from launch.node.processes import FAMILY
from launch.node.ranks import Ranks, common_environment, reap_strays, start_ranks
from launch.node.ranks_spec import WORKER, RanksSpec, spec_of_attempt
from launch.node.reactions import on_driver_gone, on_exit, on_hang, on_order, on_signal, say
from launch.node.warm import READY_S, WarmStart
from launch.outcome import Outcome
from launch.run.ended import ended_of, read_ended
from launch.run.kept_states import give_back_if_over, goes_on
from launch.run.lease import Lease
from launch.run.liveness import own_mark, write_mark
from launch.run.next_attempt import superseded
from launch.run.run_folder import locked, own
from launch.run.turned_back import tell_copies
from launch.watch.watching import POLL_S, Watch
from trainer.errors import Exit, LonghaulError
from trainer.records.attempt import error_record, write_first
from trainer.records.json_file import read_json
from trainer.records.owner import refuse_if_superseded
from trainer.records.room import place_told
from trainer.records.run_files import AttemptFiles, RunFiles

TERM_PATIENCE_S = 2.0  # from SIGTERM to SIGKILL
LOOK_MS = 100.0  # between two looks at a standby that imports


@dataclass(frozen=True)
class Node:
    """What outlives an attempt on this node. `tag` marks every process that is started here."""

    run: RunFiles
    rank: int
    once: bool
    tag: str
    scratch: Path
    inbox: SignalInbox
    guard: Guard
    starter: WarmStart
    driver: DriverLink | None = None  # None: this agent decides


def carry(
    run: RunFiles,
    attempt: int,
    *,
    node_rank: int = 0,
    once: bool = False,
    driven: str | None = None,
) -> Outcome:
    """Run the ranks of one node until the run needs no further attempt here; how the last ended.

    `once`: somebody else makes the next attempt. `driven`: a driver does, and this is the address
    at which the other nodes reach this one.
    Raises: Refused before anything is started (port taken, more ranks than devices);
    RunFolderError if the attempt has no plan, was started before, or another one owns the run, and
    where its disk has no room for a record, or its folder is gone.
    """
    following: AttemptFiles | None = run.attempt(attempt)
    tag = f"{os.getpid()}.{time.time_ns()}"
    with place_told(run.root), ExitStack() as stack:
        inbox = stack.enter_context(SignalInbox())
        scratch = Path(tempfile.mkdtemp(prefix="longhaul-"))
        guard = start_guard(tag, scratch=scratch)
        stack.callback(guard.dismiss)
        starter = _starter(run.attempt(attempt), tag, scratch, inbox)
        stack.callback(starter.end)
        spec = spec_of_attempt(run.attempt(attempt))
        driver = None if driven is None else DriverLink(driven, spec.lease_s)
        node = Node(run, node_rank, once, tag, scratch, inbox, guard, starter, driver)
        while following is not None:
            files = following
            outcome, following = _one_attempt(node, files)
            if following is not None:
                place = goes_on(run, following)
                say(f"{outcome.why}; attempt {following.number} goes on {place}")
            elif driver is not None and _may_stay(node, files, outcome):
                then = driver.what_follows(outcome.exit_code, inbox=inbox.reader)
                if then is not None:
                    node, following = replace(node, rank=then.node), run.attempt(then.attempt)
        give_back_if_over(files, outcome, node=node.rank)
    if driver is None and (untold := tell_copies(run, outcome)):
        say(untold)
    return outcome


def _starter(files: AttemptFiles, tag: str, scratch: Path, inbox: SignalInbox) -> WarmStart:
    """With a standby already on its way, if the settings want one."""
    spec = spec_of_attempt(files)
    check_devices(spec.device, ranks_per_node=spec.ranks_per_node)
    env = common_environment(spec) | {FAMILY: tag, "TMPDIR": str(scratch)}
    plan = read_json(files.plan) if files.plan.exists() else {}
    settings = {"config": plan.get("config"), "device": spec.device}
    starter = WarmStart(settings, env, files.root / "standby.log", inbox.reader)
    if _wants_standby(spec) and plan:
        starter.begin(quiet=False)
    return starter


def _may_stay(node: Node, files: AttemptFiles, outcome: Outcome) -> bool:
    """Whether the next attempt may want this node, whose ranks then need no imports.

    Not where somebody on the node itself told it to stop: it may be about to go away.
    """
    ended = read_ended(ended_of(files, node.rank))
    failed = outcome.exit_code == Exit.FAILED and spec_of_attempt(files).restart.enabled
    return failed and ended is not None and not ended.told_to_stop


def _wants_standby(spec: RanksSpec) -> bool:
    return spec.restart.standby and spec.module == WORKER


def _one_attempt(node: Node, files: AttemptFiles) -> tuple[Outcome, AttemptFiles | None]:
    """How it ended, and the attempt that follows at once, if one does."""
    spec = spec_of_attempt(files)
    check_devices(spec.device, ranks_per_node=spec.ranks_per_node)
    ranks = Ranks(files, spec, node.tag, node.scratch, spared=node.starter.pids)
    with ExitStack() as stack:
        lease = _claim(node, files) if node.driver is not None else None
        listener, meeting = _meeting(node, spec, stack)
        lease = lease or _claim(node, files)  # a port that is taken is no try
        watch = Watch(
            files,
            ranks=spec.ranks_of(node.rank),
            rules=spec.watch,
            world_size=spec.world_size,
            node=node.rank,
        )
        how: dict[str, Any] = {"why": "the agent failed"}
        stack.callback(lambda: watch.close(**how))
        stack.callback(lambda: ranks.end(patience_s=TERM_PATIENCE_S))  # strays, and our own errors
        console = None
        if meeting is not None and not _leaves_before(node, ranks):
            console = start_ranks(
                ranks,
                node.starter,
                watch,
                run_folder=node.run.root,
                node_rank=node.rank,
                listener=listener,
                meeting=meeting,
            )
        if listener is not None:
            listener.close()  # rank 0 has it
        for child in ranks.children.values():
            node.guard.watch(child.pid)
        _wait(node, ranks, lease, watch, console)
        ranks.end(patience_s=TERM_PATIENCE_S)
        if console is not None:
            console.finish()
        reap_strays([node.guard.pid, *node.starter.pids])
        outcome, following = conclude(
            node.run, ranks, node_rank=node.rank, driven=node.driver is not None, once=node.once
        )
        how |= {"exit_code": int(outcome.exit_code), "why": outcome.why}
    return outcome, following


def _meeting(
    node: Node, spec: RanksSpec, stack: ExitStack
) -> tuple[socket.socket | None, Meeting | None]:
    """(the socket of the first node, where the ranks meet); no meeting: told to leave before."""
    if node.driver is not None and node.rank > 0:
        return None, node.driver.meeting(node.inbox.reader)
    host = node.driver.address if node.driver is not None else LOOPBACK
    listener = stack.enter_context(rendezvous_socket(spec.rendezvous_port, host=host))
    meeting = Meeting(host, int(listener.getsockname()[1]))
    if node.driver is not None:
        node.driver.tell({"meet": [meeting.host, meeting.port]})
    return listener, meeting


def _leaves_before(node: Node, ranks: Ranks) -> bool:
    """Whether the end is wanted while imports are made: no rank is there that had to save."""
    driver, deadline = node.driver, time.monotonic() + READY_S
    if driver is None:
        return False
    poll = select.poll()
    poll.register(node.inbox.reader, select.POLLIN)
    while not driver.wants_end():
        late = time.monotonic() > deadline
        if late or not node.starter.is_importing() or poll.poll(LOOK_MS):
            return False
    if driver.is_gone:
        on_driver_gone(ranks)
    return True


def _claim(node: Node, files: AttemptFiles) -> Lease | None:
    """This process carries the attempt from here on, or its node's part of it under a driver."""
    if node.driver is not None:
        refuse_if_superseded(node.run.owner, files.number)
        return Lease.take(files, node=node.rank)
    if node.rank > 0:
        return None
    with locked(node.run):
        refuse_if_superseded(node.run.owner, files.number)
        lease = Lease.take(files)
        write_mark(files.agent, own_mark())
        own(node.run, files.number)
    return lease


def _wait(
    node: Node, ranks: Ranks, lease: Lease | None, watch: Watch, console: Console | None
) -> None:
    """Until every rank has ended, by itself or by us."""
    poll = select.poll()
    driver = node.driver
    readers = [node.inbox.reader, *ranks.pidfds]
    readers += ([console.reader] if console else []) + ([driver.reader] if driver else [])
    for descriptor in readers:
        poll.register(descriptor, select.POLLIN)
    while ranks.pidfds:
        for descriptor, _ in poll.poll(_patience_ms(ranks)):
            if descriptor == node.inbox.reader:
                for number in node.inbox.read():
                    on_signal(ranks, number)
            elif descriptor in ranks.pidfds:
                poll.unregister(descriptor)
                rank = ranks.pidfds.pop(descriptor)
                on_exit(ranks, rank)
                watch.ended(rank, ranks.codes[rank])
                os.close(descriptor)
            elif not _has_more(descriptor, driver, console):
                poll.unregister(descriptor)
        if driver is not None:
            _obey(driver, ranks, watch)
        _on_time(node, ranks, lease, watch)


def _has_more(descriptor: int, driver: DriverLink | None, console: Console | None) -> bool:
    """Read what is there; whether anything may follow."""
    if driver is not None and descriptor == driver.reader:
        driver.pending += driver.orders()
        return not driver.is_gone
    return console is not None and console.pump()


def _obey(driver: DriverLink, ranks: Ranks, watch: Watch) -> None:
    orders, driver.pending = driver.pending, []
    for order in orders:
        if order.get("do") == "look":
            found = watch.look()
            driver.tell({"hang": asdict(found) if found else None})
        else:
            on_order(ranks, order)
    if driver.is_silent() and not ranks.stopping and not ranks.ending:
        on_driver_gone(ranks)


def _patience_ms(ranks: Ranks) -> float:
    if ranks.deadline is None:
        return POLL_S * 1000
    return min(POLL_S, max(0.0, ranks.deadline - time.monotonic())) * 1000 + 1


def _on_time(node: Node, ranks: Ranks, lease: Lease | None, watch: Watch) -> None:
    """What is due without anything having happened."""
    now = time.monotonic()
    finding = None if ranks.ending or ranks.first_failed is not None else watch.poll(now)
    if finding is not None and node.driver is not None:
        node.driver.tell({"hang": asdict(finding)})  # which rank of all it is, the driver says
        ranks.hung = finding
        ranks.sooner(LOOK_S)
    elif finding is not None:
        on_hang(ranks, finding)
    if lease is not None and now >= lease.due:
        lease.beat()
        ranks.oom.look(ranks.pids)
        _leave_if_superseded(node, ranks)
        if _wants_standby(ranks.spec) and ranks.files.started.exists():
            node.starter.begin(quiet=True)  # the first one died, or could not be used
            ranks.spared = node.starter.pids
    if ranks.deadline is not None and now >= ranks.deadline:
        if ranks.hung is not None and ranks.first_failed is None:  # the driver said nothing
            on_hang(ranks, ranks.hung)
        at_once = ranks.stopping or ranks.first_failed is not None
        ranks.end(patience_s=0.0 if at_once else TERM_PATIENCE_S)


def _leave_if_superseded(node: Node, ranks: Ranks) -> None:
    """Somebody took the run over while we could not be asked: nothing here may go on."""
    error = superseded(node.run, ranks.files)
    if error is None or ranks.ending:
        return
    write_first(ranks.files.error, error_record(error, rank=0, step=None))
    ranks.end(patience_s=0.0)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m launch.agent")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--once", action="store_true", help="somebody else makes the next attempt")
    help_text = "a driver decides and speaks on stdin; other nodes reach this one here"
    parser.add_argument("--driven", metavar="ADDRESS", help=help_text)
    given = parser.parse_args(argv)
    run = RunFiles(given.run_folder)
    try:
        outcome = carry(
            run,
            given.attempt,
            node_rank=given.node_rank,
            once=given.once,
            driven=given.driven,
        )
    except LonghaulError as e:
        say(str(e))
        return e.exit_code
    if given.driven is None:
        say(outcome.why)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
