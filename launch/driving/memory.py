"""Nodes give back the memory of a run that is over.

An agent does so by itself where its ranks are done or have saved. Where they failed, an attempt
might go on from those states; that none will is known here alone, once the agents have left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from launch.driving.nodes import Node, Nodes
from launch.driving.team import Team
from launch.outcome import Outcome
from launch.run.kept_states import is_over, kept_by
from trainer.errors import Exit
from trainer.records.run_files import AttemptFiles

LIMIT_S = 120.0  # Ray takes a minute to start a process on a busy machine
_LOOK_S = 0.05


def still_there(before: Sequence[Node], team: Team) -> list[Node]:
    """Nodes in whose memory states lie after this attempt: by it, or from `before`.

    Not those that were lost: nobody answers there, and what comes back is reaped in its time.
    """
    known = {node.name: node for node in (*before, *(agent.node for agent in team.agents))}
    for agent in team.agents:
        if agent.is_lost or agent.code in (Exit.DONE, Exit.SAVED):
            del known[agent.node.name]
    return list(known.values())


def give_back_everywhere(
    nodes: Nodes, there: Sequence[Node], files: AttemptFiles, outcome: Outcome
) -> list[str]:
    """Names of the nodes that did not say that it is done; two minutes at most."""
    if not there or not is_over(outcome) or kept_by(files) is None:
        return []
    run = files.root.parent.parent.absolute()
    argv = ["python", "-m", "launch.node.give_back", str(run), "--attempt", str(files.number)]
    handles = {node.name: nodes.start(node, argv, env={}) for node in there}
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until and None in [each.poll() for each in handles.values()]:
        for each in handles.values():
            each.heard()  # else a pipe that nobody reads would hold it up
        time.sleep(_LOOK_S)
    silent = [name for name, each in handles.items() if each.poll() != 0]
    for each in handles.values():
        each.end()
    return silent
