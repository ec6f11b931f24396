"""Hosts as the driver's nodes (launch/driving/nodes.py)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch.driving.nodes import Node
from launch.driving.pipes import PipeHandle
from launch.node.processes import die_with_parent
from launch.ssh.sockets import Sockets
from launch.ssh.survey import Asked, ask, python_of, workdir_of
from launch.ssh.words import remote_command, ssh_words
from trainer.config.sections.ssh import SshLaunch

_LOST = 255  # ssh's own failures; no agent ends so
# The environment comes as the first line of stdin: in the words of a command everybody could read
# it. Read byte by byte, for what follows are the driver's orders.
_DOOR = """
import json, os, sys
line = b""
while not line.endswith(b"\\n"):
    byte = os.read(0, 1)
    if not byte:
        sys.exit(76)
    line += byte
os.execve(sys.argv[1], sys.argv[1:], dict(os.environ) | json.loads(line))
"""


class SshNodes:
    """`run_folder`: absolute, and the same on all hosts."""

    def __init__(self, launch: SshLaunch, hosts: Sequence[str], run_folder: Path) -> None:
        self._launch = launch
        self._hosts = list(hosts)
        self._folder = run_folder
        self._sockets = Sockets.make()

    def alive(self) -> list[Node]:
        """Those that answer, and see the run's folder."""
        asked = Asked({str(self._folder): "run.json"}, brief=True)
        answers = ask(self._launch, self._hosts, asked, sockets=self._sockets.folder)
        return [
            Node(answer.host, str(answer.said["address"]))
            for answer in answers
            if answer.said and all(seen["seen"] for seen in answer.said["folders"].values())
        ]

    def leaving(self) -> frozenset[str]:
        """ssh has no word for it; an agent that is told to stop on its node says so itself."""
        return frozenset()

    def gone(self) -> str:
        """Nobody stands between these hosts and us."""
        return ""

    def start(self, node: Node, argv: Sequence[str], *, env: Mapping[str, str]) -> PipeHandle:
        python = python_of(self._launch)
        inner = [python, "-S", "-E", "-c", _DOOR, python, *argv[1:]]
        command = remote_command(inner, workdir=workdir_of(self._launch))
        process = subprocess.Popen(
            ssh_words(self._launch, node.name, command, sockets=self._sockets.folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for the driver to pass on
            preexec_fn=die_with_parent(),
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps(dict(env)).encode() + b"\n")
        process.stdin.flush()
        return PipeHandle(process, losing=(_LOST,))

    def close(self) -> None:
        for host in self._hosts:
            words = ssh_words(self._launch, host, "", sockets=self._sockets.folder)
            control = [*words[: words.index("--")], "-O", "exit", "--", host]
            subprocess.run(control, capture_output=True, timeout=10.0, check=False)
        self._sockets.close()
