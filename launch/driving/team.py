"""The agents of one attempt: what they say to each other through the driver, and how they end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.driving.messages import Mixed, packed
from launch.driving.nodes import Handle, Node, Nodes
from launch.node.ranks_spec import RanksSpec
from launch.node.reactions import LEAVE_S
from launch.watch.finding import Finding
from trainer.errors import Exit
from trainer.records.run_files import AttemptFiles

BEAT_S = 1.0
LOOK_S = 10.0  # for the other nodes to say which of their ranks is furthest behind
END_S = 10.0  # for agents to end their ranks once the attempt is over
_TAIL_BYTES = 4000


@dataclass
class Agent:
    """`rank`: of its node. `tail`: the end of what it printed. `forced`: it did not answer any more
    and was ended, as far as that could be done. `stays`: it waits for the next attempt; its code is
    that of this one.
    """

    rank: int
    node: Node
    handle: Handle
    code: int | None = None
    found: Finding | None = None
    has_looked: bool = False
    forced: bool = False
    stays: bool = False
    tail: bytes = b""
    mixed: Mixed = field(default_factory=Mixed)

    @property
    def is_lost(self) -> bool:
        """Whether its node, or the way there, went away under it."""
        return self.code is not None and (self.handle.lost or self.forced)

    def end(self) -> None:
        self.forced = True
        self.handle.end()

    def tell(self, **message: Any) -> None:
        if self.code is None:
            self.handle.tell(packed(message))


@dataclass
class Team:
    """`grace_s`: from "save and stop" until agents have ended ranks that do not."""

    agents: list[Agent]
    grace_s: float
    meeting: tuple[str, int] | None = None
    deadline: float | None = None
    is_over: bool = False  # ends are our own doing from here on
    is_stopping: bool = False
    _looking_since: float | None = None
    _beat_due: float = 0.0
    finding: Finding | None = None  # of all nodes, once they have answered

    @property
    def running(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.code is None]

    @property
    def lost(self) -> list[Agent]:
        return [agent for agent in self.agents if agent.is_lost]

    def tell(self, **message: Any) -> None:
        for agent in self.running:
            agent.tell(**message)

    def sooner(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        self.deadline = at if self.deadline is None else min(self.deadline, at)

    def stop(self, number: int) -> None:
        """Every rank saves at the same step and leaves."""
        if not self.is_stopping and not self.is_over:
            self.is_stopping = True
            self.tell(do="signal", number=number)
            self.sooner(self.grace_s + END_S)

    def over(self) -> None:
        """The attempt cannot go on: the agents end their ranks."""
        if not self.is_over:
            self.is_over = True
            self.tell(do="end")
            self.deadline = None
            self.sooner(END_S)

    def turn(self) -> None:
        """Whatever has happened since the last turn."""
        now = time.monotonic()
        for agent in self.running:
            self._hear(agent)
        if now >= self._beat_due:
            self._beat_due = now + BEAT_S
            self.tell(do="beat")
        if self._looking_since is not None and self.finding is None:
            self._judge(now)
        if self.deadline is not None and now >= self.deadline:
            for agent in self.running:
                agent.end()

    # --- what agents say ------------------------------------------------------------------------

    def _hear(self, agent: Agent) -> None:
        code = agent.handle.poll()  # asked first: its last words are heard all the same
        messages, output = agent.mixed.feed(agent.handle.heard())
        self._show(agent, output)
        for message in messages:
            self._heed(agent, message)
        if code is not None and agent.code is None:
            agent.code = code
            self._ended(agent)

    def _show(self, agent: Agent, output: bytes) -> None:
        agent.tail = (agent.tail + output)[-_TAIL_BYTES:]
        try:
            sys.stdout.buffer.write(output)
            sys.stdout.buffer.flush()
        except (OSError, ValueError):  # the reader left; the run goes on in its logs
            return

    def _heed(self, agent: Agent, message: Mapping[str, Any]) -> None:
        if "meet" in message and agent.rank == 0 and self.meeting is None:
            host, port = message["meet"]
            self.meeting = (str(host), int(port))
            for other in self.running:
                if other is not agent:
                    other.tell(do="meet", host=host, port=port)
        elif "hang" in message:
            agent.has_looked = True
            agent.found = Finding(**message["hang"]) if message["hang"] else None
            if self._looking_since is None and not self.is_over:
                self._looking_since = time.monotonic()
                for other in self.running:
                    if other is not agent:
                        other.tell(do="look")

        elif "over" in message:
            agent.stays, agent.code = True, int(message["over"])
            self._ended(agent)

    def _judge(self, now: float) -> None:
        """Once every node has said who is furthest behind there. One that says nothing is gone."""
        assert self._looking_since is not None
        silent = [agent for agent in self.running if not agent.has_looked]
        if silent and now - self._looking_since > LOOK_S:
            for agent in silent:
                agent.end()
        elif not silent and not self.lost:
            found = [agent.found for agent in self.agents if agent.found is not None]
            self.finding = min(found, key=lambda f: (not f.certain, f.beats))

    def _ended(self, agent: Agent) -> None:
        if self.is_over:
            return
        if agent.code in (Exit.DONE, Exit.SAVED) and not agent.is_lost:
            self.sooner(LEAVE_S)
        else:
            self.over()


def start_team(
    nodes: Nodes,
    team: Sequence[Node],
    files: AttemptFiles,
    *,
    spec: RanksSpec,
    env: Mapping[str, str],
) -> Team:
    """An agent on each node; node rank is the place in `team`."""
    run = files.root.parent.parent.absolute()
    agents = []
    for rank, node in enumerate(team):
        argv = ["python", "-m", "launch.agent", str(run), "--attempt", str(files.number)]
        argv += ["--node-rank", str(rank), "--driven", node.address]
        agents.append(Agent(rank, node, nodes.start(node, argv, env=env)))
    return Team(agents, spec.grace_s)
