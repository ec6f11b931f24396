"""An agent's side of its driver: orders come on stdin, findings go to stdout (driving/messages.py).

stdin at its end, or silent for `lease_s`, means that the driver is gone: the ranks save and stop.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.driving.messages import Lines, packed_among_output

STDIN = 0
LOOK_S = 15.0  # for the driver to say what follows a hang; then this node's own finding stands


@dataclass(frozen=True)
class Meeting:
    """Where the ranks of all nodes find each other."""

    host: str
    port: int


@dataclass(frozen=True)
class Following:
    """The attempt that this node's agent carries on with, and its place in it."""

    attempt: int
    node: int


@dataclass
class DriverLink:
    """`address`: of this node, as the others reach it."""

    address: str
    lease_s: float
    reader: int = STDIN
    is_gone: bool = False
    pending: list[dict[str, Any]] = field(default_factory=list)  # came before there were ranks
    _lines: Lines = field(default_factory=Lines)
    _heard: float = field(default_factory=time.monotonic)

    def orders(self) -> list[dict[str, Any]]:
        """What came; call it when `reader` has something to read."""
        try:
            data = os.read(self.reader, 65536)
        except OSError:
            data = b""
        if not data:
            self.is_gone = True
        self._heard = time.monotonic()
        return self._lines.feed(data)

    def is_silent(self) -> bool:
        """Whether it is gone: the way to it ended, or nothing came for too long."""
        if time.monotonic() - self._heard > self.lease_s:
            self.is_gone = True
        return self.is_gone

    def tell(self, message: Mapping[str, Any]) -> None:
        try:
            sys.stdout.flush()
            os.write(sys.stdout.fileno(), packed_among_output(message))
        except OSError:  # the way to it is gone; `orders` will say so
            self.is_gone = True

    def meeting(self, inbox: int) -> Meeting | None:
        """Wait for the first node's word; None if this one is to end, or `inbox` has a signal."""
        poll = select.poll()
        for descriptor in (self.reader, inbox):
            poll.register(descriptor, select.POLLIN)
        while not self.is_silent():
            ready = {descriptor for descriptor, _ in poll.poll(1000)}
            if self.reader in ready:
                self.pending += self.orders()
                for order in self.pending:
                    if order.get("do") in ("end", "signal"):
                        return None
                    if order.get("do") == "meet":
                        return Meeting(str(order["host"]), int(order["port"]))
            elif inbox in ready:
                return None
        return None

    def wants_end(self) -> bool:
        """Whether this node is to leave before it has ranks, as far as was heard by now."""
        poll = select.poll()
        poll.register(self.reader, select.POLLIN)
        if poll.poll(0):
            self.pending += self.orders()
        return self.is_silent() or any(x.get("do") in ("end", "signal") for x in self.pending)

    def what_follows(self, code: int, *, inbox: int) -> Following | None:
        """Say that the attempt is over here, and wait; None: leave, or `inbox` has a signal.

        Every beat is answered: only who answers is told to go on.
        """
        self.pending = []
        self.tell({"over": code})
        poll = select.poll()
        for descriptor in (self.reader, inbox):
            poll.register(descriptor, select.POLLIN)
        while not self.is_silent():
            ready = {descriptor for descriptor, _ in poll.poll(1000)}
            if inbox in ready:
                return None
            orders = self.orders() if self.reader in ready else []
            for place, order in enumerate(orders):
                if order.get("do") == "end":
                    return None
                if order.get("do") == "beat":
                    self.tell({"stays": True})
                if order.get("do") == "next":
                    self.pending = orders[place + 1 :]
                    return Following(int(order["attempt"]), int(order["node"]))
        return None
