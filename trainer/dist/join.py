"""A process becomes a rank: its threads, its device, the others."""

from __future__ import annotations

from typing import Literal

from trainer.dist.device import choose_device, use_host
from trainer.dist.place import Place
from trainer.dist.world import World, meet


def join(
    place: Place, *, device: Literal["cpu", "cuda"], threads: int, timeout_s: float, token: str
) -> World:
    """Collective. `token`: names the attempt.

    Raises: WorldError if there is no device for this rank, the others do not come, or there is no
    place for it among them.
    """
    use_host(threads, device=device)
    return meet(place, device=choose_device(device, place), timeout_s=timeout_s, token=token)
