"""Which states lie whole in the memories of nodes, and from which copy each file is read. Pure.

A state is one step of one attempt. It is whole if every rank's file of the world that saved it has
a copy somewhere: at its own node, or at that node's neighbour.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from trainer.checkpoint.peer.part import Part, common_digest, encode
from trainer.records.manifest import RankFile, rank_file_name
from trainer.records.withdrawn import Withdrawal


@dataclass(frozen=True, kw_only=True)
class Copy:
    """One rank's file at one node. `leader`: the rank that found it; `place`: its folder there.

    `part`: rank 0's, as text, for what a manifest says of the whole.
    """

    leader: int
    place: str
    run_hash: str
    step: int
    attempt: int
    world_size: int
    rank: int
    size: int
    digest: str
    spans: tuple[tuple[int, int], ...]
    created: float
    common: str  # digest of what all ranks agreed on
    part: str = ""

    @property
    def is_own(self) -> bool:
        return "/own/" in self.place

    @property
    def generation(self) -> str:
        return self.place.rpartition("/")[2]


def copy_of(part: Part, *, leader: int, place: str) -> Copy:
    return Copy(
        leader=leader,
        place=place,
        run_hash=part.run_hash,
        step=part.step,
        attempt=part.attempt,
        world_size=part.world_size,
        rank=part.rank,
        size=part.size,
        digest=part.digest,
        spans=part.spans,
        created=part.created,
        common=common_digest(part),
        part=encode(part).decode() if part.rank == 0 else "",
    )


def to_row(copy: Copy) -> list[Any]:
    """For travelling as JSON."""
    return list(asdict(copy).values())


def from_row(row: Sequence[Any]) -> Copy:
    values = dict(zip((f.name for f in fields(Copy)), row, strict=True))
    values["spans"] = tuple((int(a), int(b)) for a, b in values["spans"])
    return Copy(**values)


@dataclass(frozen=True)
class State:
    """A whole state and the copy chosen of each rank's file, in rank order."""

    step: int
    attempt: int
    chosen: tuple[Copy, ...]

    @property
    def rank_files(self) -> tuple[RankFile, ...]:
        return tuple(
            RankFile(rank_file_name(c.rank), c.size, c.digest, c.spans) for c in self.chosen
        )

    @property
    def where(self) -> str:
        """For people: "memory of nodes 0, 2 (1 of 4 files from a neighbour's copy)"."""
        nodes = sorted({int(c.place.partition("/")[0].removeprefix("node-")) for c in self.chosen})
        named = ", ".join(map(str, nodes[:8])) + (" ..." if len(nodes) > 8 else "")
        copies = sum(not c.is_own for c in self.chosen)
        note = f" ({copies} of {len(self.chosen)} files from a neighbour's copy)" if copies else ""
        return f"memory of node{'s' if len(nodes) > 1 else ''} {named}{note}"


def whole_states(
    copies: Iterable[Copy], *, run_hash: str, is_void: Callable[[Copy], bool]
) -> list[State]:
    """The newest first; of one step the later attempt's."""
    groups: dict[tuple[int, int, int, str], dict[int, list[Copy]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for copy in copies:
        if copy.run_hash == run_hash and not is_void(copy):
            key = (copy.step, copy.attempt, copy.world_size, copy.common)
            groups[key][copy.rank].append(copy)
    found = []
    for (step, attempt, world_size, _), by_rank in groups.items():
        if set(by_rank) == set(range(world_size)):
            best = (min(by_rank[rank], key=_preference) for rank in range(world_size))
            found.append(State(step, attempt, tuple(best)))
    return sorted(found, key=lambda s: (s.step, s.attempt), reverse=True)


def is_abandoned(copy: Copy, loads: Collection[tuple[int, int]]) -> bool:
    """Whether a later attempt went on from an older step: the run has turned its back on this one.

    `loads`: (attempt, step that it went on from).
    """
    return any(attempt > copy.attempt and step < copy.step for attempt, step in loads)


def is_withdrawn(copy: Copy, listed: Iterable[Withdrawal]) -> bool:
    return any(w.covers(copy.step, attempt=copy.attempt, created=copy.created) for w in listed)


def loads_in(lineage: Iterable[Mapping[str, Any]]) -> set[tuple[int, int]]:
    """Of the lines of lineage.jsonl."""
    return {
        (int(line["attempt"]), int(line["step"]))
        for line in lineage
        if line.get("event") == "loaded"
    }


def _preference(copy: Copy) -> tuple[bool, int]:
    return not copy.is_own, copy.leader
