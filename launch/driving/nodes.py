"""What a driver needs of the place where the nodes are: ssh, Ray, or a fake in tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Node:
    """`name`: the same for life. `address`: at which the other nodes reach it."""

    name: str
    address: str


class Handle(Protocol):
    """One agent on one node. Nothing here raises because the node is gone, and nothing waits."""

    @property
    def lost(self) -> bool:
        """Whether nobody can say how the agent ended: the node, or the way there, is gone."""

    def poll(self) -> int | None:
        """Its exit code; None while it runs. What `lost` means has a code too, any."""

    def tell(self, data: bytes) -> None:
        """To its stdin."""

    def heard(self) -> bytes:
        """What it has printed (stdout and stderr) since this was asked last."""

    def end(self) -> None:
        """End it and whatever it started, now. Its stdin is at its end after this at the latest."""


class Nodes(Protocol):
    """The nodes that a run may use. An agent ends its ranks when its stdin ends."""

    def alive(self) -> list[Node]:
        """Those that could start ranks now and are not about to go away. May take seconds; it is
        called from a thread of its own, never twice at once. In the order of preference.
        """

    def leaving(self) -> frozenset[str]:
        """Names of those that said that they will go away soon. Never waits."""

    def gone(self) -> str:
        """Why none of them will answer any more, with what to do; empty: they may. Never waits."""

    def start(self, node: Node, argv: Sequence[str], *, env: Mapping[str, str]) -> Handle:
        """Start `argv` there, in the folder of the command; its first word "python" stands for the
        interpreter of the node. `env`: besides what the node's own environment has.
        """

    def close(self) -> None:
        """The run needs them no more."""
