"""Nodes of a Ray cluster as the driver's nodes (launch/driving/nodes.py)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.driving.nodes import Node
from launch.raying.cluster import Cluster, RayNode
from launch.raying.head import Head
from trainer.config.sections.ray import RayLaunch

_LOST = 254  # a code for an agent whose own nobody knows
_HEAR_S = 1.0  # a question to a holder is answered after so long at the latest
_LEAVING_S = 2.0  # between two looks for nodes that are drained
_RELEASED_S = 30.0  # until Ray counts what we gave back as free, at the latest
_SUSPECT_S = 90.0  # a node that did not answer is asked again before it is believed
_PROBE_S = 5.0
_GOODBYE_S = 5.0


@dataclass
class RayHandle:
    """An agent in the hands of an AgentHolder (launch/raying/actor.py).

    `begin` starts all agents that wait for it, this one among them: a placement group has room for
    all of them or for none, so it is made once all are known.
    """

    cluster: Cluster
    launch: RayLaunch
    node: Node
    argv: Sequence[str]
    env: Mapping[str, str]
    begin: Callable[[], None]
    suspect: Callable[[str], None]  # called with the node's name if it does not answer
    actor: Any = None
    begun: float = field(default_factory=time.monotonic)
    lost: bool = False
    ending: Any = None
    _heard_at: float | None = None  # None: never
    _code: int | None = None
    _received: int = 0
    _pending: list[bytes] = field(default_factory=list)
    _question: Any = None

    def poll(self) -> int | None:
        self._pump()
        return self._code

    def heard(self) -> bytes:
        self._pump()
        data, self._pending = b"".join(self._pending), []
        return data

    def tell(self, data: bytes) -> None:
        if self.actor is None:
            self.begin()
        if self._code is None:
            with suppress(self.cluster.error):
                self.actor.tell.remote(data)

    def end(self) -> None:
        if self.ending is None and self.actor is not None:
            with suppress(self.cluster.error):
                self.ending = self.actor.end.remote()
        if self._code is None:
            self._code = _LOST

    def _pump(self) -> None:
        if self._code is not None:
            return
        if self.actor is None:
            self.begin()
        now = time.monotonic()
        try:
            if self._question is None:
                self._question = self.actor.hear.remote(self._received, _HEAR_S)
            answer = self.cluster.answer(self._question)
        except self.cluster.died as e:
            self._lose(f"Ray lost the agent on {self.node.name}: {_first_line(e)}")
            return
        except self.cluster.error:  # the way there is interrupted; it may come back
            self._question = None
            answer = None
        if answer is None:
            self._check_silence(now)
            return
        self._question, self._heard_at = None, now
        data, code = answer
        self._received += len(data)
        self._pending.append(data)
        if not data:
            self._code = code  # only once all its words are here

    def _check_silence(self, now: float) -> None:
        if self._heard_at is None and now - self.begun > self.launch.start_s:
            self.suspect(self.node.name)
            why = f"Ray did not start an agent on {self.node.name} within launch.start_s="
            self._lose(f"{why}{self.launch.start_s:g}")
        elif self._heard_at is not None and now - self._heard_at > self.launch.silent_s:
            self.suspect(self.node.name)
            self._lose(f"{self.node.name} was silent for {self.launch.silent_s:g} s")

    def _lose(self, why: str) -> None:
        self.lost, self._code = True, _LOST
        self._pending.append(f"{why}\n".encode())


class RayNodes:
    """`bundle`: what the ranks of one node take of it; `workdir`: where agents start."""

    def __init__(self, launch: RayLaunch, *, bundle: Mapping[str, float], workdir: Path) -> None:
        self._launch = launch
        self._bundle = bundle
        self._workdir = launch.workdir or str(workdir)
        self._cluster = Cluster.connect(launch)
        self._known: dict[str, RayNode] = {}
        self._held: dict[str, float] = {}  # ours now, or given back until then
        self._suspects: dict[str, float] = {}  # asked before they are believed, until then
        self._group: Any = None
        self._handles: list[RayHandle] = []
        self._leaving: frozenset[str] = frozenset()
        self._closed = threading.Event()
        self._head = Head(self._cluster.head)
        self._watcher = threading.Thread(target=self._watch, name="leaving", daemon=True)
        self._watcher.start()

    def alive(self) -> list[Node]:
        """Those with room for ranks that are not drained; one that was silent is asked first."""
        found = []
        for each in self._cluster.nodes():
            self._known[each.name] = each
            if not each.is_leaving and self._has_room(each) and self._is_believed(each):
                found.append(Node(each.name, each.address))
        return found

    def leaving(self) -> frozenset[str]:
        ids = self._leaving
        return frozenset(name for name, each in self._known.copy().items() if each.id in ids)

    def gone(self) -> str:
        return self._head.gone()

    def start(self, node: Node, argv: Sequence[str], *, env: Mapping[str, str]) -> RayHandle:
        if self._group is not None:
            self._release()
        handle = RayHandle(self._cluster, self._launch, node, argv, env, self._begin, self._suspect)
        self._handles.append(handle)
        return handle

    def _begin(self) -> None:
        names = [handle.node.name for handle in self._handles]
        self._held = dict.fromkeys(names, float("inf"))
        self._group = self._cluster.reserve([self._known[name] for name in names], self._bundle)
        for place, each in enumerate(self._handles):
            each.actor = self._cluster.holder(self._group, place)
            each.actor.start.remote(
                list(each.argv), dict(each.env), self._workdir, self._launch.python
            )

    def close(self) -> None:
        self._closed.set()
        self._head.close()
        if self.gone():
            return  # Ray would wait for it, and end this process
        self._watcher.join()
        with suppress(self._cluster.error):
            self._release()
        self._cluster.close()

    # --- who has room ---------------------------------------------------------------------------

    def _has_room(self, node: RayNode) -> bool:
        """What is ours, or was a moment ago, counts as free: Ray hears of it late."""
        ours = self._held.get(node.name, 0.0) > time.monotonic()
        there = node.total if ours else node.free
        return all(there.get(name, 0.0) >= n for name, n in self._bundle.items())

    def _is_believed(self, node: RayNode) -> bool:
        if self._suspects.get(node.name, 0.0) < time.monotonic():
            return True
        return self._cluster.answers(node, patience_s=_PROBE_S)

    def _suspect(self, name: str) -> None:
        self._suspects[name] = time.monotonic() + _SUSPECT_S

    def _release(self) -> None:
        """Agents that were told to end have a moment to take their ranks along."""
        ends = [handle.ending for handle in self._handles if not handle.lost and handle.ending]
        self._cluster.wait(ends, patience_s=_GOODBYE_S)
        now = time.monotonic()
        ours = [name for name, until in self._held.items() if until > now]
        self._held = dict.fromkeys(ours, now + _RELEASED_S)
        self._handles = []
        if self._group is not None:
            self._cluster.give_up(self._group)
            self._group = None

    def _watch(self) -> None:
        while not self._closed.wait(_LEAVING_S):
            with suppress(self._cluster.error):
                self._leaving = self._cluster.leaving()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
