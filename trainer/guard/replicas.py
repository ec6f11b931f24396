"""Do all ranks hold the same weights? A bit that flipped on one of them shows in no loss.

Each rank makes one number of 64 bits from the bytes it holds; the numbers of all ranks travel in
one small reduction. What this can see: at ZeRO stages 0 to 2 all weights, at stage 3 the small ones
that stay gathered. At stages 1 and 2 each update overwrites the copies, so that a flip in one lives
for a step; a flip in a shard of masters reaches all ranks alike and is not seen here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import torch

from trainer.dist.world import World
from trainer.errors import ReplicasDiffer

Replica = Sequence[tuple[str, torch.Tensor]]

# Words of 64 bits that are weighted at once: in a CPU's cache; few launches on a GPU.
_CHUNK = {"cpu": 1 << 18, "cuda": 1 << 26}
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)  # 2^64 / phi, as a signed number


def check_replicas(world: World, replica: Replica, *, step: int) -> None:
    """Collective. Raises: ReplicasDiffer, alike on all ranks."""
    place = world.place
    if place.world_size == 1 or not replica:
        return
    prints = fingerprints(replica)
    seen = _of_all(world, _mixed(prints))
    votes = Counter(seen).most_common()
    if len(votes) == 1:
        return
    usual, most = votes[0]
    tie = len(votes) > 1 and votes[1][1] == most
    odd = [rank for rank, value in enumerate(seen) if value != usual]
    others = f"rank {', '.join(map(str, odd))} {'differs' if len(odd) == 1 else 'differ'}"
    who = "no rank has a majority on its side" if tie else f"{others} from the other {most}"
    at = _of_all_tensors(world, prints)
    where = replica[at[0]][0] if at else "them"
    raise ReplicasDiffer(
        f"step {step}: the weights are not the same on all ranks: {who}, in {len(at)} tensors, "
        f"{where} for one. A device or memory there is not to be trusted; nothing is saved from "
        "this state, and a restart goes on from the last checkpoint"
    )


def fingerprints(replica: Replica) -> list[int]:
    """64 bits of each tensor's bytes, order included; any one flipped bit changes them.

    Words times odd weights that depend on their place, summed modulo 2^64, on the device that
    holds them: copying weights to the host would take longer.
    """
    if not replica:
        return []
    device = replica[0][1].device
    most = max(t.numel() * t.element_size() for _, t in replica) // 8 + 1
    places = torch.arange(min(_CHUNK[device.type], most), dtype=torch.int64, device=device)
    weights = (places * _GOLDEN) | 1
    sums = torch.stack([_fingerprint(tensor.detach(), weights) for _, tensor in replica])
    return [int(v) for v in sums.tolist()]  # the one wait for the device


def _fingerprint(tensor: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    words = _words(tensor)
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for part in torch.split(words, len(weights)):
        total = total * _GOLDEN + (part * weights[: len(part)]).sum()
    return total


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes as int64, the last word filled up with zeros."""
    flat = tensor.contiguous().view(-1).view(torch.uint8)
    whole = len(flat) // 8 * 8
    if whole == len(flat):
        return (
            flat.view(torch.int64) if flat.data_ptr() % 8 == 0 else flat.clone().view(torch.int64)
        )
    filled = torch.zeros(whole + 8, dtype=torch.uint8, device=flat.device)
    filled[: len(flat)] = flat
    return filled.view(torch.int64)


def _mixed(prints: Iterable[int]) -> int:
    total = 0
    for value in prints:
        total = (total * _GOLDEN + value) % (1 << 64)
    return total


def _of_all(world: World, mine: int) -> list[int]:
    """Every rank's number of 64 bits. A float64 carries 32 bits of it without loss."""
    place = world.place
    row = [0.0] * (2 * place.world_size)
    row[2 * place.rank : 2 * place.rank + 2] = [float(mine >> 32), float(mine & 0xFFFFFFFF)]
    halves = [int(v) for v in world.sum(row)]
    return [(a << 32) + b for a, b in zip(halves[::2], halves[1::2], strict=True)]


def _of_all_tensors(world: World, prints: Sequence[int]) -> list[int]:
    """Which tensors are not alike everywhere."""
    mine = [float(half) for p in prints for half in ((p >> 32) & 0xFFFFFFFF, p & 0xFFFFFFFF)]
    most = world.max([*mine, *(-v for v in mine)])
    count = len(mine)
    apart = [i for i in range(count) if most[i] != -most[count + i]]
    return sorted({i // 2 for i in apart})
