"""Where every rank of a run is right now.

Ranks of this machine: from the pages on which they say so, which costs them nothing. Ranks of
others: what each node's ledger last said of its first one, at most a minute ago.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.run.liveness import is_alive, read_mark
from trainer.records.ledger import read_newest
from trainer.records.pulse import PAGE_BYTES, read_beat
from trainer.records.run_files import AttemptFiles, RunFiles

_PAGE = re.compile(r"/memfd:longhaul-pulse-([0-9]+)\b")
_NODES_READ = 64  # ledgers a frame; a frame is no place to open thousands of files


@dataclass(frozen=True)
class RankPhase:
    """`seconds`: in this phase so far, or since the node was heard of. `beats`: phases entered."""

    rank: int
    phase: str
    step: int
    seconds: float
    beats: int = 0


def phases_of(run: RunFiles, attempt: AttemptFiles) -> list[RankPhase]:
    """By rank; empty if nobody says."""
    mark = read_mark(attempt.agent)
    if mark is not None and is_alive(mark):
        found = _of_agent(mark.pid)
        if found:
            return found
    return sorted(_of_ledgers(run, attempt.number), key=lambda one: one.rank)


def _of_agent(pid: int) -> list[RankPhase]:
    found = []
    pages = dict(_pages(Path(f"/proc/{pid}/fd")))  # a mapping holds its file a second time
    for rank, path in sorted(pages.items()):
        try:
            with path.open("rb", buffering=0) as file:
                beat = read_beat(bytearray(file.read(PAGE_BYTES)))
        except OSError:
            continue  # the attempt ends
        if beat.pid:
            spent = max(time.monotonic() - beat.since, 0.0)
            found.append(RankPhase(rank, beat.phase, beat.step, spent, beat.beats))
    return found


def _pages(folder: Path) -> Iterator[tuple[int, Path]]:
    """Raises nothing: a process that is gone, or another user's, has none."""
    try:
        descriptors = list(folder.iterdir())
    except OSError:
        return
    for path in descriptors:
        try:
            match = _PAGE.search(str(path.readlink()))
        except OSError:
            continue
        if match:
            yield int(match[1]), path


def _of_ledgers(run: RunFiles, attempt: int) -> Iterator[RankPhase]:
    for node in range(_NODES_READ):
        path = run.ledger(node)
        if not path.exists():
            return
        said = read_newest(path, "spent")
        if said is not None and said.attempt == attempt:
            facts = said.facts
            age = max(time.time() - said.time, 0.0)
            yield RankPhase(int(facts["rank"]), str(facts["phase"]), int(facts["step"]), age)


def text_of(phases: Sequence[RankPhase]) -> str:
    """Ranks together that are in one phase of one step, those furthest behind last."""
    groups: dict[tuple[int, str], list[RankPhase]] = {}
    for one in sorted(phases, key=lambda one: (-one.beats, one.rank)):
        groups.setdefault((one.step, one.phase), []).append(one)
    said = []
    for (step, phase), ranks in groups.items():
        longest = max(one.seconds for one in ranks)
        said.append(f"{phase} of {step}: {spans([one.rank for one in ranks])} ({longest:.1f} s)")
    return "; ".join(said)


def spans(numbers: Sequence[int]) -> str:
    """0-3,7"""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)
