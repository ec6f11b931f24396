"""Which rank this process is. Imports nothing heavy: a wrong start is refused at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from trainer.errors import WorldError


@dataclass(frozen=True)
class Place:
    """Where this process sits. Read from the variables that every launcher sets."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Place:
        """Raises: WorldError if only some of the variables are set, or they make no sense."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        missing = [n for n in names if n not in env]
        if len(missing) == len(names):
            return cls()
        if missing:
            raise WorldError(
                f"{', '.join(missing)} not set although other rank variables are; "
                "start workers with longhaul, torchrun or srun"
            )
        said = ", ".join(f"{n}={env[n]}" for n in names)
        try:
            rank, world_size, local_rank = (int(env[n]) for n in names)
        except ValueError:
            raise WorldError(f"{said}: each must be a whole number") from None
        if not 0 <= rank < world_size or not 0 <= local_rank <= rank:
            raise WorldError(f"{said}: 0 <= LOCAL_RANK <= RANK < WORLD_SIZE must hold")
        return cls(rank, world_size, local_rank)

    def check(self, planned_world_size: int) -> None:
        """Raises: WorldError if this is not a rank of a world as planned."""
        if self.world_size != planned_world_size:
            raise WorldError(
                f"WORLD_SIZE is {self.world_size}, but this attempt was planned for "
                f"{planned_world_size} ranks; start as many, or plan another attempt"
            )
