"""Nodes that are only names: every agent is a process of this machine, on loopback."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.driving.nodes import Node
from launch.driving.pipes import PipeHandle
from launch.node.processes import alive, die_with_parent
from tests.helpers.agent_process import wait_for

REPOSITORY = Path(__file__).parents[2]
_KILLED = -9


class ProcessNodes:
    """What is public here is a test's to change, also while a driver asks."""

    def __init__(self, *names: str, env: Mapping[str, str]) -> None:
        self.present = list(names)
        self.about_to_leave: set[str] = set()
        self.why_gone = ""
        self.started: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._env = dict(env)

    def set(self, name: str, value: str) -> None:
        """In the environment of what is started from here on."""
        self._env[name] = value

    def alive(self) -> list[Node]:
        return [Node(name, "127.0.0.1") for name in self.present]

    def leaving(self) -> frozenset[str]:
        return frozenset(self.about_to_leave)

    def gone(self) -> str:
        return self.why_gone

    def start(self, node: Node, argv: Sequence[str], *, env: Mapping[str, str]) -> PipeHandle:
        process = subprocess.Popen(
            [sys.executable, *argv[1:]],
            cwd=REPOSITORY,
            env=self._env | dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),
        )
        self.started.append((node.name, process))
        return PipeHandle(process, losing=(_KILLED,))

    def lose(self, name: str) -> None:
        """As if its machine were switched off: when this returns, none of its processes runs."""
        self.present.remove(name)
        for node, process in self.started:
            if node == name and process.poll() is None:
                _switch_off(process)

    def close(self) -> None:
        """Nothing is kept."""


def _switch_off(agent: subprocess.Popen[bytes]) -> None:
    below = _descendants(agent.pid)
    agent.kill()
    wait_for(lambda: not alive(below))  # they die with it, each in its own time


def _descendants(pid: int) -> list[int]:
    found: list[int] = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the thread ended
            for child in map(int, listed.read_text().split()):
                found += [child, *_descendants(child)]
    return found
