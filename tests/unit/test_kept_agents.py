"""Agents between two attempts: who stays hears of the next one, who is silent is replaced."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.driving import kept as kept_agents
from launch.driving.kept import Kept
from launch.driving.messages import packed, packed_among_output
from launch.driving.nodes import Node
from launch.driving.team import Agent, Team
from launch.node.driven import DriverLink, Following
from launch.node.ranks_spec import RanksSpec
from trainer.records.run_files import AttemptFiles, RunFiles

SPEC = RanksSpec("trainer.worker", 2, 1, "cpu", 1, 0, 10.0)
NODES = [Node("n0", "10.0.0.1"), Node("n1", "10.0.0.2")]


class Wire:
    """An agent's handle: what it was told, and what it says to that."""

    lost = False

    def __init__(self, *, answers: bool = True, code: int | None = None) -> None:
        self.answers, self.code = answers, code
        self.told: list[str] = []
        self.ended = False
        self._out = b""

    def poll(self) -> int | None:
        return self.code

    def tell(self, data: bytes) -> None:
        what = json.loads(data)["do"]
        self.told.append(what)
        if what == "beat" and self.answers:
            self._out += packed_among_output({"stays": True})
        if what == "end":
            self.code = 76

    def heard(self) -> bytes:
        out, self._out = self._out, b""
        return out

    def end(self) -> None:
        self.ended = True


def team_of(*wires: Wire, stays: bool = True) -> Team:
    agents = [Agent(k, NODES[k], wire, code=76, stays=stays) for k, wire in enumerate(wires)]
    return Team(agents, 10.0)


def kept_of(*wires: Wire) -> Kept:
    kept = Kept()
    kept.take(team_of(*wires))
    return kept


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AttemptFiles:
    monkeypatch.setattr(kept_agents, "ANSWER_S", 0.05)
    monkeypatch.setattr(kept_agents, "GOODBYE_S", 0.05)
    return RunFiles(tmp_path).attempt(2)


def test_who_stays_on_the_same_nodes_is_told_of_the_next_attempt(files: AttemptFiles) -> None:
    wires = Wire(), Wire()
    kept = kept_of(*wires)
    team = kept.team_for(NODES, files, SPEC)
    assert team is not None
    assert [(agent.rank, agent.node.name, agent.code) for agent in team.agents] == [
        (0, "n0", None),
        (1, "n1", None),
    ]
    assert [wire.told for wire in wires] == [["beat", "next"]] * 2
    assert kept.agents == []


@pytest.mark.parametrize("code", [None, 255])
def test_a_team_of_which_one_does_not_answer_leaves(code: int | None, files: AttemptFiles) -> None:
    first, second = Wire(), Wire(answers=False, code=code)
    kept = kept_of(first, second)
    assert kept.team_for(NODES, files, SPEC) is None
    assert [wire.told for wire in (first, second)] == [["beat", "end"]] * 2
    assert first.ended
    assert second.ended


@pytest.mark.parametrize(
    "chosen", [NODES[:1], NODES[::-1], [NODES[0], Node("n1", "10.0.0.9")], [*NODES, NODES[0]]]
)
def test_another_team_starts_anew(chosen: list[Node], files: AttemptFiles) -> None:
    wires = Wire(), Wire()
    assert kept_of(*wires).team_for(chosen, files, SPEC) is None
    assert [wire.told for wire in wires] == [["end"]] * 2


def test_where_one_left_none_is_kept(files: AttemptFiles) -> None:
    team = team_of(Wire(), Wire())
    team.agents[1].stays = False
    kept = Kept()
    kept.take(team)
    assert kept.agents == []
    assert all(agent.handle.ended for agent in team.agents if isinstance(agent.handle, Wire))


def test_an_agent_that_says_it_is_over_has_ended_for_its_team() -> None:
    wire = Wire()
    agent = Agent(0, NODES[0], wire)
    team = Team([agent], 10.0)
    wire._out = packed_among_output({"over": 76})
    team.turn()
    assert (agent.code, agent.stays, team.running, team.is_over) == (76, True, [], True)
    assert not agent.is_lost


# --- on the node ------------------------------------------------------------------------------


@pytest.fixture
def orders(capfd: pytest.CaptureFixture[str]) -> Iterator[tuple[DriverLink, int, int]]:
    """(the agent's end, where its driver writes, a reader in which no signal is)."""
    reader, writer = os.pipe()
    inbox, other = os.pipe()
    yield DriverLink("10.0.0.1", 30.0, reader=reader), writer, inbox
    for descriptor in (reader, inbox, other):
        os.close(descriptor)


def test_an_agent_answers_beats_and_goes_on_where_it_is_told(
    orders: tuple[DriverLink, int, int], capfd: pytest.CaptureFixture[str]
) -> None:
    link, writer, inbox = orders
    meet = {"do": "meet", "host": "h", "port": 1}
    sent = [{"do": "beat"}, {"do": "next", "attempt": 2, "node": 1}, meet]
    os.write(writer, b"".join(packed(order) for order in sent))
    link.pending = [{"do": "end"}]  # of the attempt before
    assert link.what_follows(76, inbox=inbox) == Following(2, 1)
    assert link.pending == [meet]
    said = packed_among_output({"over": 76}) + packed_among_output({"stays": True})
    assert capfd.readouterr().out.encode() == said
    os.close(writer)


def test_an_agent_leaves_when_told_to_and_when_its_driver_is_gone(
    orders: tuple[DriverLink, int, int],
) -> None:
    link, writer, inbox = orders
    os.write(writer, packed({"do": "end"}))
    assert link.what_follows(76, inbox=inbox) is None
    os.close(writer)
    assert link.what_follows(76, inbox=inbox) is None
    assert link.is_gone


def test_an_agent_hears_of_a_stop_before_it_has_ranks(
    orders: tuple[DriverLink, int, int],
) -> None:
    link, writer, _ = orders
    os.write(writer, packed({"do": "beat"}))
    assert not link.wants_end()
    os.write(writer, packed({"do": "signal", "number": 15}))
    assert link.wants_end()
    os.close(writer)
