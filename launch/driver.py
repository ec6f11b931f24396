"""Carries a run over several nodes: picks them, starts an agent on each, decides what follows.

    python -m launch.driver RUN_FOLDER --attempt N

The one restarter of such a run. After an attempt the decision is made from files, as an agent of
one node makes it; the next attempt has the nodes that are there then, down to
`resources.min_nodes`. What kind of nodes they are is behind launch/driving/nodes.py.
"""

from __future__ import annotations

import argparse
import select
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from launch.driving.conclusion import Ending, conclude
from launch.driving.fit import fitted
from launch.driving.kept import Kept
from launch.driving.lookout import Lookout
from launch.driving.memory import give_back_everywhere, still_there
from launch.driving.nodes import Node, Nodes
from launch.driving.team import Team, start_team
from launch.driving.waiting import say_waiting, waits_no_more
from launch.node.inbox import SignalInbox
from launch.node.ranks_spec import RanksSpec, spec_of_attempt
from launch.node.reactions import say
from launch.outcome import Outcome, newest_checkpoint
from launch.run.kept_states import goes_on
from launch.run.lease import Lease
from launch.run.liveness import own_mark, write_mark
from launch.run.next_attempt import RESTART_FILE, superseded
from launch.run.not_taken import note_if_not_taken
from launch.run.run_folder import locked, own
from launch.run.turned_back import tell_copies
from launch.watch.watching import record_hang
from trainer.errors import LonghaulError
from trainer.records.attempt import Stop, StopCause, read_stop, write_record
from trainer.records.owner import refuse_if_superseded
from trainer.records.run_files import AttemptFiles, RunFiles

TURN_S = 0.1
LOOK_EVERY_S = 2.0  # between two questions which nodes are there, while it waits for them
GROW_EVERY_S = 10.0  # ... while it runs with fewer than are wanted
AWAY_S = 120.0  # a node on which an agent was told to stop is not taken again so soon


@dataclass
class Driver:
    """What outlives an attempt. `env`: for the agents."""

    run: RunFiles
    nodes: Nodes
    env: Mapping[str, str]
    inbox: SignalInbox
    lookout: Lookout
    kept: Kept = field(default_factory=Kept)  # agents of the attempt before
    team_before: list[str] = field(default_factory=list)
    keeping: list[Node] = field(default_factory=list)  # states of the run may lie in their memory
    away: dict[str, float] = field(default_factory=dict)  # node -> until when it is not taken
    asked_to_stop: bool = False  # the run, not one attempt of it
    interrupts: int = 0

    # --- one attempt ----------------------------------------------------------------------------

    def attempt(self, files: AttemptFiles) -> tuple[Outcome, AttemptFiles | None]:
        """How it ended, and the attempt that follows at once, if one does."""
        lease = self._claim(files)
        spec = spec_of_attempt(files)
        self._heed_late_stop(files)
        team: Team | None = None
        chosen = self._gather(files, spec, lease)
        waits_no_more(files)
        if chosen:
            spec = fitted(self.run, files, spec, nodes=len(chosen))
            team = self.kept.team_for(chosen, files, spec) or start_team(
                self.nodes, chosen, files, spec=spec, env=self.env
            )
            self.team_before = [node.name for node in chosen]
            try:
                self._wait(files, spec, team, lease)
            finally:
                self.kept.take(team)
                self.keeping = still_there(self.keeping, team)
        ending = Ending(
            team,
            has_waited=not chosen and not files.stop.exists(),
            gone=self.nodes.gone(),
            may_go_on=not self.asked_to_stop,
            killed_by_user=self.interrupts >= 2,
        )
        outcome, following = conclude(self.run, files, spec, ending)
        until = time.monotonic() + AWAY_S
        self.away |= dict.fromkeys(ending.told_there(files), until)
        return outcome, following

    def _claim(self, files: AttemptFiles) -> Lease:
        with locked(self.run):
            refuse_if_superseded(self.run.owner, files.number)
            lease = Lease.take(files)
            write_mark(files.agent, own_mark())
            own(self.run, files.number)
        return lease

    # --- which nodes ----------------------------------------------------------------------------

    def _gather(self, files: AttemptFiles, spec: RanksSpec, lease: Lease) -> list[Node]:
        """The nodes of the attempt; none: it was told to stop, or waited in vain."""
        asked, most, least = time.monotonic(), _most(spec), _least(spec)
        deadline, has_said = asked + spec.restart.wait_s, False
        self.lookout.ask()
        while time.monotonic() < deadline and not self._told_to_stop(files):
            if time.monotonic() >= lease.due:
                lease.beat()
            found = self.lookout.since(asked)
            if self.nodes.gone():
                break
            if found is None:
                continue
            chosen = self._usable(found)[:most]
            if len(chosen) >= least:
                return chosen
            if not has_said:
                has_said = True
                names = ", ".join(node.name for node in chosen) or "none"
                say(f"waiting for {least} nodes; there: {names}")
                say_waiting(files, f"waits for {least} nodes; there: {names}")
            asked = time.monotonic()
            self.lookout.ask()
        return []

    def _usable(self, found: Sequence[Node]) -> list[Node]:
        """Those of the attempt before first, in their order: state in memory stays where it is."""
        now, leaving = time.monotonic(), self.nodes.leaving()
        taken = [n for n in found if n.name not in leaving and self.away.get(n.name, 0.0) < now]
        place = {name: k for k, name in enumerate(self.team_before)}
        return sorted(taken, key=lambda node: place.get(node.name, len(place)))

    # --- while it runs --------------------------------------------------------------------------

    def _wait(self, files: AttemptFiles, spec: RanksSpec, team: Team, lease: Lease) -> None:
        """Until every agent has ended, by itself or by us."""
        begun_with = newest_checkpoint(self.run)
        looked = -GROW_EVERY_S
        while team.running:
            if self._told_to_stop(files):
                team.stop(signal.SIGTERM)
            if self.interrupts >= 2:
                team.over()
            team.turn()
            if team.finding is not None and not team.is_over:
                record_hang(files, team.finding)
                team.over()
            if time.monotonic() < lease.due:
                continue
            lease.beat()
            if superseded(self.run, files) is not None:
                team.over()
            if going := self.nodes.leaving() & {agent.node.name for agent in team.running}:
                self._ask(files, "drain", f"{', '.join(sorted(going))} is about to go away")
            elif gone := self.nodes.gone():
                self._ask(files, "drain", gone)  # its agents still hear us; nobody else does
            elif len(team.agents) < _most(spec) and spec.restart.enabled:
                looked = self._maybe_grow(files, team, looked, begun_with)

    def _maybe_grow(self, files: AttemptFiles, team: Team, looked: float, begun_with: int) -> float:
        """Ask the attempt to stop if there are more nodes and a checkpoint has just been made.

        Returns when the nodes were asked for last.
        """
        if time.monotonic() - looked > GROW_EVERY_S:
            self.lookout.ask()
            return time.monotonic()
        found = self.lookout.since(looked)
        if found is None:
            return looked
        here = {agent.node.name for agent in team.agents}
        new = [node.name for node in self._usable(found) if node.name not in here]
        if new and newest_checkpoint(self.run) > begun_with and not files.stop.exists():
            say(f"{', '.join(new)} can take part: every rank saves, then all go on together")
            self._ask(files, "resize", f"{', '.join(new)} came")
        return looked

    def _told_to_stop(self, files: AttemptFiles) -> bool:
        """Whether anybody wants the attempt to stop: a signal, a command, a node, ourselves."""
        poll = select.poll()
        poll.register(self.inbox.reader, select.POLLIN)
        if poll.poll(TURN_S * 1000):
            for number in self.inbox.read():
                self.interrupts += number == signal.SIGINT
                self.asked_to_stop = True
                cause: StopCause = "interrupt" if number == signal.SIGINT else "scheduler"
                self._ask(files, cause, signal.Signals(number).name)
        if not files.stop.exists():
            return False
        stop = _read_stop(files)
        self.asked_to_stop |= stop is not None and stop.cause == "user"
        return True

    def _heed_late_stop(self, files: AttemptFiles) -> None:
        """What a user wrote beside the attempt before while this one was being made."""
        if (files.root / RESTART_FILE).exists():
            stop = _read_stop(self.run.attempt(files.number - 1))
            if stop is not None and stop.cause == "user":
                self._ask(files, "user", stop.detail)

    def give_back(self, files: AttemptFiles, outcome: Outcome) -> None:
        """Where the run is over, what nodes keep of it in memory."""
        silent = give_back_everywhere(self.nodes, self.keeping, files, outcome)
        if silent:
            say(
                f"{', '.join(silent)} did not say that the run's states in memory are gone there; "
                "they go with the next start of a run of yours on that machine"
            )

    def _ask(self, files: AttemptFiles, cause: StopCause, detail: str) -> None:
        if not files.stop.exists():  # `longhaul stop` has written its own before it signals us
            write_record(files.stop, Stop(cause=cause, time=time.time(), detail=detail))


def drive(run: RunFiles, attempt: int, nodes: Nodes, *, env: Mapping[str, str]) -> Outcome:
    """Until the run needs no further attempt here; how the last one ended.

    Raises: RunFolderError if the attempt was started before, or another one owns the run; what
    `nodes` raises when nothing can be started any more.
    """
    following: AttemptFiles | None = run.attempt(attempt)
    with ExitStack() as stack:
        stack.callback(nodes.close)
        inbox = stack.enter_context(SignalInbox())
        lookout = Lookout(nodes, interval_s=LOOK_EVERY_S)
        stack.callback(lookout.close)
        driver = Driver(run, nodes, env, inbox, lookout)
        stack.callback(driver.kept.dismiss)
        while following is not None:
            files = following
            outcome, following = driver.attempt(files)
            if following is not None:
                place = goes_on(run, following)
                say(f"{outcome.why}; attempt {following.number} goes on {place}")
        driver.kept.dismiss()
        driver.give_back(files, outcome)
    if untold := tell_copies(run, outcome):
        say(untold)
    return outcome


def _most(spec: RanksSpec) -> int:
    return spec.most_nodes or spec.nodes


def _least(spec: RanksSpec) -> int:
    return spec.least_nodes or _most(spec)


def _read_stop(files: AttemptFiles) -> Stop | None:
    try:
        return read_stop(files.stop)
    except (ValueError, TypeError):
        return None


def main(argv: list[str] | None = None) -> int:
    from launch.driving.places import place_of

    parser = argparse.ArgumentParser(prog="python -m launch.driver")
    parser.add_argument("run_folder", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args(argv)
    run = RunFiles(given.run_folder)
    try:
        nodes, env = place_of(run.attempt(given.attempt))
        outcome = drive(run, given.attempt, nodes, env=env)
    except LonghaulError as e:
        note_if_not_taken(run, given.attempt, e)
        say(str(e))
        return e.exit_code
    say(outcome.why)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
