"""Agents that stay on their nodes between two attempts: the next one's ranks need no imports.

A team is kept whole or not at all. Places may give their nodes for all agents together (a placement
group of Ray's), and another team has another plan anyway.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from launch.driving.messages import packed
from launch.driving.nodes import Node
from launch.driving.team import Agent, Team
from launch.node.ranks_spec import RanksSpec
from trainer.records.run_files import AttemptFiles

ANSWER_S = 10.0  # to be taken for there; a moment, on a machine that has a moment
GOODBYE_S = 10.0  # to leave when told to
_TURN_S = 0.02


@dataclass
class Kept:
    agents: list[Agent] = field(default_factory=list)  # all of a team, in its order; or none

    def take(self, team: Team) -> None:
        """The attempt is over: who does not stay is ended, and then nobody stays."""
        staying = [agent for agent in team.agents if agent.stays and not agent.is_lost]
        for agent in team.agents:
            if agent not in staying:
                agent.handle.end()
        self.agents = staying
        if len(staying) < len(team.agents):
            self.dismiss()

    def team_for(self, chosen: Sequence[Node], files: AttemptFiles, spec: RanksSpec) -> Team | None:
        """The same agents, told of the next attempt, if they are on these nodes and answer; else
        they leave, and it is None."""
        if [agent.node for agent in self.agents] != list(chosen) or not self._answer():
            self.dismiss()
            return None
        team = []
        for rank, agent in enumerate(self.agents):
            agent.handle.tell(packed({"do": "next", "attempt": files.number, "node": rank}))
            team.append(Agent(rank, agent.node, agent.handle, mixed=agent.mixed))
        self.agents = []
        return Team(team, spec.grace_s)

    def dismiss(self) -> None:
        for agent in self.agents:
            agent.handle.tell(packed({"do": "end"}))
        _turn_until(lambda: all(_is_gone(agent) for agent in self.agents), seconds=GOODBYE_S)
        for agent in self.agents:
            agent.handle.end()
        self.agents = []

    def _answer(self) -> bool:
        """Whether all are there: a connection may look whole whose other end is gone."""
        for agent in self.agents:
            agent.handle.tell(packed({"do": "beat"}))
        silent = list(self.agents)

        def is_settled() -> bool:
            for agent in list(silent):
                messages, _ = agent.mixed.feed(agent.handle.heard())
                if any("stays" in message for message in messages):
                    silent.remove(agent)
            return not silent or any(agent.handle.poll() is not None for agent in silent)

        _turn_until(is_settled, seconds=ANSWER_S)
        return not silent


def _is_gone(agent: Agent) -> bool:
    agent.handle.heard()  # else a pipe that nobody reads would hold it up
    return agent.handle.poll() is not None


def _turn_until(condition: Callable[[], bool], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_TURN_S)
