"""What a check says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "warn", "problem"]
Facts = Mapping[str, Any]  # what one theme found, as JSON gives it back


@dataclass(frozen=True)
class Finding:
    """`warn`: a run will work, worse than it could. `problem`: it will not, or not for long."""

    name: str
    value: str
    verdict: Verdict = "ok"
    fix: str = ""  # what to do; empty if nothing
    node: str = ""  # whose; empty: of the whole


@dataclass(frozen=True)
class Needs:
    """What is asked of a machine: the run's side of every comparison."""

    nodes: int = 1
    ranks_per_node: int = 1
    device: Literal["cpu", "cuda"] = "cpu"
    checkpoint_bytes: int = 0  # 0: not known
    wandb_online: bool = False

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node
