"""What follows an attempt whose ranks on this node have ended, written down with the run.

Under a driver only this node's part is: the driver puts the parts together (driving/conclusion.py).
"""

from __future__ import annotations

import time

from launch.node.failure import failure_text
from launch.node.ranks import Ranks
from launch.node.reactions import say
from launch.outcome import Outcome, decide, observe
from launch.run.attempts import close_attempt, read_lines_of
from launch.run.ended import Ended, ended_of, write_ended
from launch.run.next_attempt import bring_back, next_attempt, superseded
from launch.run.run_folder import locked
from trainer.errors import Exit
from trainer.records.run_files import AttemptFiles, RunFiles


def conclude(
    run: RunFiles, ranks: Ranks, *, node_rank: int, driven: bool, once: bool
) -> tuple[Outcome, AttemptFiles | None]:
    """How the attempt ended, and the one that follows here at once, if one does.

    `once`: somebody else makes the next attempt.
    """
    ended = Ended(
        time=time.time(),
        codes={str(rank): code for rank, code in sorted(ranks.codes.items())},
        killed_by_user=ranks.interrupts >= 2,
        first_failed_rank=ranks.first_failed,
        told_to_stop=ranks.told_here,
    )
    files, rules = ranks.files, ranks.spec.restart
    if driven:
        write_ended(ended_of(files, node_rank), ended)
        return _own_part(ended), None
    following = None
    with locked(run):  # nobody may think in between that the run is free
        write_ended(files.ended, ended)
        seen = observe(run, files.number)
        outcome = decide(seen, earlier=read_lines_of(run), rules=rules)
        close_attempt(run, files.number, outcome)
        failed = outcome.action == "again" and outcome.exit_code == Exit.FAILED
        here = rules.enabled and not once and ranks.spec.nodes == 1
        if outcome.exit_code == Exit.NO_PROGRESS and (done := bring_back(run, files.number)):
            say(done)
        if failed and here and seen.stop is None and superseded(run, files) is None:
            following = next_attempt(run, files, outcome)
    if following is None and outcome.exit_code not in (Exit.DONE, Exit.SAVED, Exit.INTERRUPTED):
        say(failure_text(files) or outcome.why)
    return outcome, following


def _own_part(ended: Ended) -> Outcome:
    """For the driver's eyes: what becomes of the run is not decided here."""
    codes = set(ended.codes.values())
    if not codes:  # not "done": what this node keeps in memory may still be wanted
        return Outcome("again", Exit.FAILED, "no rank was started on this node")
    if codes <= {Exit.DONE}:
        return Outcome("done", Exit.DONE, "the ranks of this node are done")
    if codes <= {Exit.DONE, Exit.SAVED}:
        return Outcome("again", Exit.SAVED, "the ranks of this node have saved")
    return Outcome("again", Exit.FAILED, f"the ranks of this node ended with {ended.codes}")
