"""What a run has cost so far, in seconds of ranks, from the records of its attempts.

Whoever carries an attempt writes when it began and how many ranks it has; what it waited for in a
queue is not in it. CPU ranks count like GPU ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from launch.driving.waiting import waiting_for
from launch.run.job_record import JobState
from launch.run.lease import BEAT_FILE
from launch.run.standing import Standing
from trainer.records.ledger import Event, read_ledger
from trainer.records.run_files import RunFiles

_SEEN_LATE_S = 120.0  # a network file system may show so late that a file was written


def rank_seconds(run: RunFiles, *, now: float | None) -> float:
    """`now`: seconds since the epoch while it runs; None if nobody carries it."""
    return cost_of(read_ledger(run.ledger(0)), now=now)


def cost_so_far(run: RunFiles, standing: Standing, *, now: float) -> float:
    """Of a run that may be carried. A job that was requeued has an attempt that nobody ended: what
    it waits since then costs nothing."""
    if waits_in_a_queue(standing):
        return rank_seconds(run, now=None)
    events = read_ledger(run.ledger(0))
    return cost_of(events, now=_carried_until(run, events, now) if standing.may_be_active else None)


def waits_in_a_queue(standing: Standing) -> bool:
    """Of a scheduler, or of a driver that waits for nodes."""
    if standing.job is not None and standing.job.state is JobState.PENDING:
        return True
    return standing.files is not None and bool(waiting_for(standing.files))


def _carried_until(run: RunFiles, events: Sequence[Event], now: float) -> float:
    """Who carries an attempt touches a file of it every second."""
    with suppress(IndexError, OSError):
        beat = (run.attempt(events[-1].attempt).root / BEAT_FILE).stat().st_mtime
        if now - beat > _SEEN_LATE_S:
            return beat
    return now


def cost_of(events: Sequence[Event], *, now: float | None) -> float:
    """Pure. An attempt whose agent was killed lasts until its last line, or until `now`."""
    total = 0.0
    begun: Event | None = None
    last: Event | None = None
    for event in events:
        if event.event == "attempt":
            total += _between(begun, last)
            begun = event
        last = event
    if begun is None or last is None:
        return 0.0
    total += _between(begun, last)
    if now is not None and last.event != "ended":
        total += _ranks(begun) * max(now - last.time, 0.0)
    return total


def _between(begun: Event | None, last: Event | None) -> float:
    """By the clock that nobody sets; all lines of an attempt are of one boot."""
    if begun is None or last is None:
        return 0.0
    return _ranks(begun) * max(last.clock - begun.clock, 0.0)


def _ranks(event: Event) -> int:
    return int(event.facts.get("world_size") or len(event.facts.get("ranks", ())) or 1)
