"""Which rank holds up the others. Pure: what was seen goes in, a name comes out.

All ranks pass the same phases in the same order, so the one that has entered the fewest is the one
that the others wait for; however long these stand in a collective, they are not judged. Where
several stand equally far, or a collective let some ranks go on before it was over, what the
processes themselves show decides: a stopped one, then one that is not in a collective.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from trainer.records.pulse import Beat

STOPPED = ("T", "t")  # states of a process: by a signal, by a debugger


@dataclass(frozen=True)
class Standing:
    """One rank now. `stalled_s`: in its phase, without the time that the machine stood still."""

    rank: int
    beat: Beat
    stalled_s: float
    limit_s: float


@dataclass(frozen=True)
class Witness:
    """What a process showed of itself when it was asked for its stacks.

    `state`: a letter of /proc/PID/stat. `waits`: its main thread is in a collective; None: it did
    not answer. `frames`: of that thread, innermost first.
    """

    state: str
    waits: bool | None
    frames: tuple[str, ...] = ()
    text: str = ""

    @property
    def is_stopped(self) -> bool:
        return self.state in STOPPED


def overdue(standings: Collection[Standing]) -> Standing | None:
    """The rank that takes longest beyond its limit, of those that nobody else holds up."""
    if not standings:
        return None
    fewest = min(standing.beat.beats for standing in standings)
    late = [s for s in standings if s.beat.beats == fewest and s.stalled_s > s.limit_s]
    return max(late, key=lambda s: s.stalled_s - s.limit_s, default=None)


def culprit(standings: Collection[Standing], seen: Mapping[int, Witness]) -> Standing:
    """The rank to blame; `standings` is not empty."""
    return min(standings, key=lambda s: (_innocence(seen.get(s.rank)), s.beat.beats, s.beat.since))


def is_certain(witness: Witness | None) -> bool:
    """Whether the process itself shows that it waits for nobody."""
    return witness is not None and (witness.is_stopped or witness.waits is False)


def _innocence(witness: Witness | None) -> int:
    if witness is None or witness.waits is None:
        return 0 if witness is not None and witness.is_stopped else 1
    if witness.is_stopped:
        return 0
    return 2 if witness.waits else 1
