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
    """Which ranks are on which node, by its name: where Slurm shows each task one GPU alone, all of
    them have local rank 0.
    """

    names: tuple[str, ...]  # of each rank's node

    @classmethod
    def of(cls, world: World, name: str) -> Nodes:
        """Collective. `name`: of this rank's node."""
        names = world.gather(name)
        return cls(tuple(world.lead(lambda: names)))

    @property
    def leaders(self) -> tuple[int, ...]:
        """The first rank of each node, in their order."""
        return tuple(sorted({self.names.index(name) for name in set(self.names)}))

    def ranks_with(self, rank: int) -> list[int]:
        """All that are on its node."""
        return [other for other, name in enumerate(self.names) if name == self.names[rank]]

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
    found: dict[str, Any] = {"world": _all_reduce(world, None, len(nodes.names), megabytes)}
    beat()
    mine = nodes.ranks_with(me)
    found["within"], found["across"] = [], []
    if len(nodes.leaders) > 1:
        # Made by a rank alone, too: torch numbers a process's groups, and numbers must agree.
        group = probes.subgroup(mine, timeout_s=timeout_s)
        if len(mine) > 1:
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
