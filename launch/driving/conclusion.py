"""What follows an attempt on several nodes: whose fault it was, the decision, the next attempt."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from launch.driving.team import Agent, Team
from launch.node.failure import failed, failure_text, read_failure
from launch.node.ranks_spec import RanksSpec
from launch.node.reactions import say
from launch.outcome import Outcome, decide, observe
from launch.run.attempts import close_attempt, read_lines_of
from launch.run.budgets import LAUNCH_FAILED, NODE_LOST
from launch.run.ended import Ended, ended_of, read_ended, together, write_ended
from launch.run.job_record import read_job, write_job
from launch.run.next_attempt import bring_back, next_attempt, superseded
from launch.run.run_folder import locked
from trainer.errors import Exit
from trainer.records.attempt import write_first, write_record
from trainer.records.run_files import AttemptFiles, RunFiles

_TAIL_LINES = 6


@dataclass(frozen=True)
class Ending:
    """How an attempt came to its end, as its driver saw it.

    `team` None: no agent was started; `has_waited`: because there were too few nodes; `gone`: why
    there will be none any more.
    """

    team: Team | None
    has_waited: bool
    may_go_on: bool
    killed_by_user: bool
    gone: str = ""

    def lost(self, files: AttemptFiles) -> list[Agent]:
        """Whose ranks nobody can speak for; an agent that went away after its last word is none."""
        agents = self.team.lost if self.team else []
        return [agent for agent in agents if read_ended(ended_of(files, agent.rank)) is None]

    def told_there(self, files: AttemptFiles) -> Iterator[str]:
        """Nodes where somebody told the agent itself to stop: they may be about to go away."""
        for agent in self.team.agents if self.team else []:
            ended = read_ended(ended_of(files, agent.rank))
            if ended is not None and ended.told_to_stop:
                yield agent.node.name


def conclude(
    run: RunFiles, files: AttemptFiles, spec: RanksSpec, ending: Ending
) -> tuple[Outcome, AttemptFiles | None]:
    """The outcome, written down, and the attempt that follows at once, if one does."""
    lost = ending.lost(files)
    following = None
    with locked(run):  # nobody may think in between that the run is free
        _blame(files, spec, ending, lost)
        ended = together(files, lost=[agent.node.name for agent in lost]) or Ended(time.time(), {})
        ended = replace(ended, killed_by_user=ended.killed_by_user or ending.killed_by_user)
        write_ended(files.ended, ended)
        outcome = decide(observe(run, files.number), earlier=read_lines_of(run), rules=spec.restart)
        close_attempt(run, files.number, outcome)
        if outcome.exit_code == Exit.NO_PROGRESS and (done := bring_back(run, files.number)):
            say(done)
        may = spec.restart.enabled and ending.may_go_on and not ending.has_waited
        if outcome.action == "again" and may and superseded(run, files) is None:
            following = next_attempt(run, files, outcome)
            if (record := read_job(files)) is not None:
                write_job(following, record)  # the same job carries it
    if following is None and outcome.exit_code not in (Exit.DONE, Exit.SAVED, Exit.INTERRUPTED):
        say(failure_text(files) or outcome.why)
    return outcome, following


def _blame(files: AttemptFiles, spec: RanksSpec, ending: Ending, lost: list[Agent]) -> None:
    """Make error.json speak of the node that went away; ranks elsewhere only died of it."""
    known = read_failure(files)
    if files.done.exists() or (known is not None and not known.is_echo):
        return
    if lost:
        first = lost[0]
        echo = f"rank {known.rank} then said: {known.kind}: {known.message}" if known else ""
        message = f"was lost with {_names(lost)}{_last_words(first)}"
        rank = spec.ranks_of(first.rank).start
        write_record(files.error, failed(rank, NODE_LOST, message, traceback=echo))
    elif ending.has_waited:
        least = spec.least_nodes or spec.most_nodes or spec.nodes
        message = ending.gone or f"waited {spec.restart.wait_s:.0f} s in vain for {least} nodes"
        write_first(files.error, failed(0, LAUNCH_FAILED, message))
    else:
        for agent in _speechless(files, ending):
            rank = spec.ranks_of(agent.rank).start
            message = f"the agent on {agent.node.name} started no ranks{_last_words(agent)}"
            code = Exit(agent.code) if agent.code in (Exit.REFUSED, Exit.STOP) else Exit.FAILED
            write_first(files.error, failed(rank, LAUNCH_FAILED, message, code=code))


def _speechless(files: AttemptFiles, ending: Ending) -> list[Agent]:
    """Agents that ended by themselves and left no word of their ranks."""
    agents = ending.team.agents if ending.team else []
    return [
        agent
        for agent in agents
        if agent.code not in (Exit.DONE, Exit.SAVED)
        and read_ended(ended_of(files, agent.rank)) is None
    ]


def _names(agents: list[Agent]) -> str:
    names = ", ".join(agent.node.name for agent in agents)
    return f"node {names}" if len(agents) == 1 else f"nodes {names}"


def _last_words(agent: Agent) -> str:
    lines = agent.tail.decode(errors="replace").strip().splitlines()[-_TAIL_LINES:]
    return (":\n" + "\n".join(f"    {line}" for line in lines)) if lines else ""
