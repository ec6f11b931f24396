"""All-reduce over the world, within nodes and between them; and pairs, to find who is slow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.dist import probes
from trainer.dist.world import World
from trainer.doctor.pairs import partner, tournament

_SMALL = 8  # bytes: latency alone
_MIB = 1 << 20
_PAIR_BYTES = 8 * _MIB


@dataclass(frozen=True)
class Nodes:
    """Which ranks are on which node. Ranks of a node are numbered one after another."""

    leaders: tuple[int, ...]  # the first rank of each
    world_size: int

    @classmethod
    def of(cls, world: World) -> Nodes:
        """Collective."""
        row = [0.0] * world.place.world_size
        row[world.place.rank] = float(world.place.local_rank == 0)
        leads = world.sum(row)
        return cls(tuple(r for r, one in enumerate(leads) if one), world.place.world_size)

    def index_of(self, rank: int) -> int:
        return sum(leader <= rank for leader in self.leaders) - 1

    def ranks_of(self, node: int) -> range:
        ends = (*self.leaders[1:], self.world_size)
        return range(self.leaders[node], ends[node])

    def looks(self, rank: int) -> bool:
        """Whether a rank watches what all ranks of its node see alike."""
        return rank in self.leaders or len(self.leaders) == 1


def bus_bytes_per_s(num_bytes: int, seconds: float, ranks: int) -> float:
    """What every link must have carried, whatever the number of ranks.

    Source: nccl-tests, doc/PERFORMANCE.md: busbw = size / time x 2 (n - 1) / n.
    """
    return num_bytes / seconds * 2 * (ranks - 1) / ranks


def measure_network(
    world: World,
    nodes: Nodes,
    *,
    timeout_s: float,
    megabytes: Sequence[int],
    beat: Callable[[], None],
) -> dict[str, Any]:
    """All-reduce of the world, of this rank's node, and of one rank a node. Collective."""
    me = world.place.rank
    found: dict[str, Any] = {"world": _all_reduce(world, None, nodes.world_size, megabytes)}
    beat()
    mine = list(nodes.ranks_of(nodes.index_of(me)))
    found["within"], found["across"] = [], []
    if len(nodes.leaders) > 1:
        if len(mine) > 1:
            group = probes.subgroup(mine, timeout_s=timeout_s)
            found["within"] = _all_reduce(world, group, len(mine), megabytes)
        world.max([0.0])  # nodes have the wires to themselves, one kind of traffic at a time
        beat()
        if me in nodes.leaders:
            group = probes.subgroup(nodes.leaders, timeout_s=timeout_s)
            found["across"] = _all_reduce(world, group, len(nodes.leaders), megabytes)
        world.max([0.0])
        beat()
    return found


def measure_pairs(
    world: World, players: Sequence[int], *, beat: Callable[[], None]
) -> list[dict[str, Any]]:
    """What each pair of `players` exchanges a second, as this rank saw it. Collective."""
    found: list[dict[str, Any]] = []
    for pairs in tournament(players):
        world.max([0.0])
        beat()
        peer = partner(pairs, world.place.rank)
        if peer is None:
            continue
        seconds = probes.exchange_seconds(peer, _PAIR_BYTES, device=world.device)
        if world.place.rank < peer:
            one = {"ranks": [world.place.rank, peer], "bytes_per_s": _PAIR_BYTES / seconds}
            found.append(one)
    world.max([0.0])
    return found


def _all_reduce(
    world: World, group: Any, ranks: int, megabytes: Sequence[int]
) -> list[dict[str, float]]:
    """One row a size: the first of 8 bytes (latency), then what was asked."""
    rows = []
    for num_bytes in (_SMALL, *(size * _MIB for size in megabytes)):
        seconds = probes.all_reduce_seconds(num_bytes, device=world.device, group=group)
        middle = seconds[len(seconds) // 2]
        rows.append(
            {
                "bytes": num_bytes,
                "ranks": ranks,
                "seconds": middle,
                "slowest_s": seconds[-1],
                "bus_bytes_per_s": bus_bytes_per_s(num_bytes, middle, ranks),
            }
        )
    return rows
