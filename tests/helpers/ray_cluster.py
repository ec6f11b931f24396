"""A real Ray cluster on the machines of tests/helpers/nodes.py, and runs on it.

The head is the login machine and gives nothing to ranks; every node has two of Ray's CPUs and two
of a resource called `slot`. Nothing is left behind: nodes go with their namespaces, the head is
ended by its pid, what Ray wrote lay in a folder of the tests.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.helpers.data import tiny_text_corpus
from tests.helpers.nodes import Lab, Machine, environment, machines, skip
from tests.helpers.ssh_runs import PASSED, SshRun
from tests.helpers.tiny_run import TINY

PORT = 6390
DASHBOARD = 8299
_RAY = [sys.executable, "-m", "ray.scripts.scripts"]
_UP_S = 300.0
_SMALL = 100_000_000  # bytes of the object store: nothing of ours lies there
_COUNT = """
import ray, sys
ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
print("alive", *[n["NodeManagerHostname"] + "=" + n["NodeID"] for n in ray.nodes() if n["Alive"]])
"""


@dataclass
class RayCluster:
    lab: Lab
    temporary: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    head: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{self.lab.login.address}:{PORT}"

    @property
    def dashboard(self) -> str:
        return f"http://{self.lab.login.address}:{DASHBOARD}"

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        ours = {
            "HOME": str(self.lab.folder / "home"),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "PYTHONWARNINGS": "ignore",
            "RAY_DISABLE_MEMORY_MONITOR": "1",
            "OMP_NUM_THREADS": "1",
        }
        return environment(ours | dict(more or {}))

    def start_head(self, *, dashboard: bool) -> None:
        words = ["start", "--head", "--block", "--num-cpus=0", "--num-gpus=0"]
        words += [f"--node-ip-address={self.lab.login.address}", f"--port={PORT}"]
        words += [f"--temp-dir={self.temporary}", f"--object-store-memory={_SMALL}"]
        words += [f"--include-dashboard={str(dashboard).lower()}", "--disable-usage-stats"]
        if dashboard:
            words += [f"--dashboard-host={self.lab.login.address}", f"--dashboard-port={DASHBOARD}"]
        self.head = self._ray(self.lab.login, words)

    def join(self, node: Machine) -> None:
        """One more node; a fresh one each time, also if it was here before."""
        node.sh(f"mount -t tmpfs none {self.temporary}")
        self._start_on(node)

    def _start_on(self, node: Machine) -> None:
        words = ["start", f"--address={self.address}", "--block", "--num-cpus=2", "--num-gpus=0"]
        words += [f"--node-ip-address={node.address}", f"--object-store-memory={_SMALL}"]
        words += ["--resources", json.dumps({"slot": 2}), "--disable-usage-stats"]
        node.daemons.append(self._ray(node, words))

    def _ray(self, machine: Machine, words: list[str]) -> subprocess.Popen[bytes]:
        log = (self.lab.folder / f"{machine.name}.ray.log").open("ab")
        try:
            return machine.popen(
                [*_RAY, *words], stdout=log, stderr=log, env=self.environment(), cwd="/"
            )
        finally:
            log.close()

    def alive(self) -> dict[str, str]:
        """Host -> id of nodes that Ray takes for living."""
        argv = [sys.executable, "-c", _COUNT, self.address]
        try:
            said = self.lab.login.run(argv, env=self.environment(), check=False, timeout=300)
        except subprocess.TimeoutExpired:  # a busy machine: it is asked again
            return {}
        for line in said.splitlines():
            if line.startswith("alive"):
                return dict(word.split("=") for word in line.split()[1:])
        return {}

    def until(self, nodes: int) -> dict[str, str]:
        deadline = time.monotonic() + _UP_S
        while len(found := self.alive()) != nodes + 1:
            assert time.monotonic() < deadline, (found, self.logs())
            for each in self.lab.nodes:
                if each.daemons and each.daemons[-1].poll() is not None:
                    each.daemons.pop()
                    self._start_on(each)  # Ray gives up after 30 s, which a busy machine may take
            time.sleep(0.5)
        return found

    def until_listening(self) -> None:
        probe = f"import socket; socket.create_connection(('{self.lab.login.address}', {PORT}))"
        deadline = time.monotonic() + _UP_S
        while self.lab.login.run([sys.executable, "-S", "-c", probe], check=False):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.2)

    def drain(self, node: Machine, *, seconds: int) -> str:
        """As a cloud does that takes a spot machine back in so many seconds."""
        known: dict[str, str] = {}
        while node.name not in known:  # a busy machine may not answer at once
            known = self.until(len([each for each in self.lab.nodes if each.pid]))
        words = ["drain-node", "--address", self.address, "--node-id", known[node.name]]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        words += ["--deadline-remaining-seconds", str(seconds)]
        return self.lab.login.run([*_RAY, *words], env=self.environment())

    def logs(self) -> str:
        return "\n".join(each.read_text()[-1500:] for each in self.lab.folder.glob("*.ray.log"))

    def close(self) -> None:
        for node in self.lab.nodes:
            if node.pid:
                node.kill()
        if self.head is not None:
            self.head.terminate()
            try:
                self.head.wait(300)
            except subprocess.TimeoutExpired:
                self.head.kill()
                self.head.wait()
        for pid in self._left():
            os.kill(pid, signal.SIGKILL)

    def _left(self) -> list[int]:
        """Processes of the head that outlived it: they name our folder."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if os.fsencode(self.temporary) in command:
                found.append(int(folder.name))
        return found


@contextmanager
def ray_cluster(folder: Path, nodes: int, *, dashboard: bool = False) -> Iterator[RayCluster]:
    """Skips (or fails, where cluster tests are required) without Ray or namespaces."""
    try:
        from importlib import metadata

        metadata.version("ray")
    except metadata.PackageNotFoundError:
        skip("Ray is not installed")
    temporary = Path(tempfile.mkdtemp(prefix="lhr-", dir="/tmp"))  # sockets have short names
    with machines(folder, nodes, sshd=False) as lab:
        made = RayCluster(lab, temporary)
        try:
            made.start_head(dashboard=dashboard)
            made.until_listening()
            for each in lab.nodes:
                made.join(each)
            made.until(nodes)
            yield made
        finally:
            made.close()
            shutil.rmtree(temporary, ignore_errors=True)


@dataclass
class RayRun(SshRun):
    """As its parent, through `launch=ray`; `cluster` is to be given."""

    cluster: RayCluster | None = None

    def words(self, *overrides: str) -> list[str]:
        assert self.cluster is not None
        corpus = tiny_text_corpus(self.folder / "corpus", documents=60)
        return [
            *TINY,
            f"data.sources.files.paths=[{json.dumps(str(corpus))}]",
            f"data.store_root={json.dumps(str(self.folder / 'stores'))}",
            f"run.root={json.dumps(str(self.folder / 'runs'))}",
            f"run.name={self.name}",
            "launch=ray",
            f"launch.address={json.dumps(self.cluster.address)}",
            "launch.grace_s=20",
            "launch.start_s=200",  # a busy machine is not a lost one
            "launch.silent_s=40",
            "launch.per_node={slot:2}",
            f"launch.environment=[{','.join((*PASSED, *self.passed))}]",
            f"resources.nodes={self.nodes}",
            *overrides,
        ]

    def environment(self) -> dict[str, str]:
        assert self.cluster is not None
        more: dict[str, Any] = super().environment()
        return more | self.cluster.environment(
            {name: more[name] for name in ("FAKE_BEHAVIOUR",) if name in more} | dict(self.env)
        )
