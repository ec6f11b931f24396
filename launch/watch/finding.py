"""A hang as a value, in words, and as the attempt's error. Standard library only."""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.node.failure import read_failure
from launch.run.budgets import HUNG
from launch.watch.culprit import Standing, Witness, culprit, is_certain
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord, write_record
from trainer.records.pulse import LOOP
from trainer.records.run_files import AttemptFiles

_NAMED = 8  # ranks named one by one
_FRAMES = 6  # of the culprit's stack that a person is told at once


@dataclass(frozen=True)
class Finding:
    """A hang. `certain`: the culprit itself was seen outside a collective, or stopped."""

    culprit_rank: int
    phase: str
    step: int
    stalled_s: float
    limit_s: float
    text: str  # what a person is told after "rank N "
    certain: bool
    stack: str = ""  # of all threads of the culprit
    beats: int = 0  # phases that the culprit has entered
    is_late: bool = True  # beyond its limit


def finding_of(
    standings: Collection[Standing],
    late: Standing,
    seen: Mapping[int, Witness],
    *,
    stacks: Path,
) -> Finding:
    """`late`: who was beyond its limit; `seen`: what the processes showed; `stacks`: the folder."""
    blamed = culprit(standings, seen)
    witness = seen.get(blamed.rank)
    if blamed is late:
        about = f"the limit is {late.limit_s:.1f} s{_others(standings, blamed)}"
    else:
        about = f"rank {late.rank} is in {where(late)}, the limit is {late.limit_s:.1f} s"
    lines = [f"hung in {where(blamed)}; {about}", *_shown(witness)]
    lines.append(f"stacks of all ranks: {stacks}")
    return Finding(
        culprit_rank=blamed.rank,
        phase=blamed.beat.phase,
        step=blamed.beat.step,
        stalled_s=round(blamed.stalled_s, 1),
        limit_s=late.limit_s,
        text="\n  ".join(lines),
        certain=is_certain(witness),
        stack=witness.text if witness else "",
        beats=blamed.beat.beats,
        is_late=late.stalled_s > late.limit_s,
    )


def record_hang(files: AttemptFiles, finding: Finding) -> None:
    """Make error.json speak of the culprit; what another rank wrote meanwhile is its echo.

    A culprit that has told an error of its own, and then hung while it tidied up, keeps that.
    """
    known = read_failure(files)
    if known is not None and known.rank == finding.culprit_rank:
        return
    done = finding.step - 1 if finding.phase in LOOP else finding.step
    record = ErrorRecord(
        time=time.time(),
        rank=finding.culprit_rank,
        host=socket.gethostname(),
        kind=HUNG,
        message=finding.text,
        exit_code=int(Exit.FAILED),
        step=done if finding.step else None,
        traceback=finding.stack,
    )
    write_record(files.error, record)


def where(standing: Standing) -> str:
    beat = standing.beat
    step = f" of step {beat.step}" if beat.step else ""
    return f"{beat.phase}{step} for {standing.stalled_s:.1f} s"


def _shown(witness: Witness | None) -> list[str]:
    lines = []
    if witness is not None and witness.is_stopped:
        lines.append("it was stopped by a signal (SIGSTOP)")
    elif witness is None or witness.waits is None:
        state = (witness.state if witness else "") or "gone"
        lines.append(f"it gave no stacks; its process state is {state} (D: stuck in a disk)")
    elif not is_certain(witness):
        lines.append("it is furthest behind, but waits in a collective as the others do")
    if witness is not None and witness.frames:
        lines.append("it stands in " + " < ".join(witness.frames[:_FRAMES]))
    return lines


def _others(standings: Collection[Standing], blamed: Standing) -> str:
    others = [str(s.rank) for s in standings if s.rank != blamed.rank]
    if not others:
        return ""
    if len(others) > _NAMED:
        return f"; {len(others)} other ranks wait for it"
    who = f"rank {others[0]} waits" if len(others) == 1 else f"ranks {', '.join(others)} wait"
    return f"; {who} for it"
