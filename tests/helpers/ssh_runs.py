"""Runs through `launch=ssh` on the machines of tests/helpers/nodes.py, typed on the login one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.node.processes import alive
from launch.node.ranks import pids_file
from launch.run.liveness import read_mark
from launch.run.run_folder import read_record
from tests.helpers.agent_process import wait_for
from tests.helpers.data import tiny_text_corpus
from tests.helpers.nodes import Lab, Machine, environment
from tests.helpers.tiny_run import TINY
from trainer.errors import Exit
from trainer.records.attempt import ErrorRecord, write_record
from trainer.records.json_file import read_json, read_lines
from trainer.records.memory_files import MemoryFiles
from trainer.records.run_files import RunFiles

PASSED = ("PYTHONPATH", "FAKE_BEHAVIOUR", "OMP_NUM_THREADS", "TORCH_EXTENSIONS_DIR", "TMPDIR")
_CARRIED = (b"launch.driver", b"launch.agent", b"fake_worker", b"trainer.worker")


@dataclass
class SshRun:
    """`behaviours`: of ranks without torch (tests/helpers/fake_worker.py); None: real ones."""

    lab: Lab
    folder: Path  # shared by all machines
    name: str
    nodes: int = 2
    behaviours: Mapping[str, Sequence[str]] | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    passed: Sequence[str] = ()

    @property
    def run(self) -> RunFiles:
        return RunFiles(self.folder / "runs" / self.name)

    def words(self, *overrides: str) -> list[str]:
        corpus = tiny_text_corpus(self.folder / "corpus", documents=60)
        hosts = ",".join(node.name for node in self.lab.nodes[: self.nodes])
        return [
            *TINY,
            f"data.sources.files.paths={_list(corpus)}",
            f"data.store_root={_word(self.folder / 'stores')}",
            f"run.root={_word(self.folder / 'runs')}",
            f"run.name={self.name}",
            "launch=ssh",
            "launch.grace_s=20",
            "launch.silent_s=40",  # a busy machine is not a lost one
            f"launch.hosts=[{hosts}]",
            f"launch.identity_file={_word(self.lab.identity)}",
            f"launch.options={_list(f'UserKnownHostsFile={self.lab.known_hosts}')}",
            f"launch.environment=[{','.join((*PASSED, *self.passed))}]",
            f"resources.nodes={self.nodes}",
            *overrides,
        ]

    def type(
        self, verb: str, *words: str, machine: Machine | None = None, timeout: float = 600.0
    ) -> subprocess.CompletedProcess[str]:
        """`longhaul VERB ...` on the login machine, or another; stdout and stderr as one text."""
        fake = self.behaviours is not None and verb in ("train", "resume")
        module = "tests.helpers.fake_ranks" if fake else "launch"
        argv = [sys.executable, "-m", module, verb, *words]
        return subprocess.run(
            (machine or self.lab.login).words(argv),
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def train(self, *overrides: str) -> str:
        """What was printed when it had been handed over."""
        done = self.type("train", *self.words(*overrides))
        assert done.returncode == 0, done.stdout
        return done.stdout

    def resume(self, *overrides: str) -> str:
        done = self.type("resume", str(self.run.root), *overrides)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def environment(self) -> dict[str, str]:
        behaviours = {"FAKE_BEHAVIOUR": json.dumps(self.behaviours)} if self.behaviours else {}
        return environment({"TMPDIR": str(self.lab.temp), **behaviours, **self.env})

    # --- what it left ---------------------------------------------------------------------------

    def up(self, attempt: int, ranks: int) -> None:
        root = self.run.attempt(attempt).root
        wait_for(lambda: all((root / f"up-{r}").exists() for r in range(ranks)), seconds=400)

    def until_over(self, *, seconds: float = 240.0) -> None:
        """Until nobody carries the run any more."""
        wait_for(lambda: not self.processes(), seconds=seconds)

    def driver(self) -> int:
        """Its pid, which is the same on all machines but the nodes."""
        newest = max(self.run.attempts.iterdir())
        mark = read_mark(newest / "agent.json")
        assert mark is not None
        return mark.pid

    def kill_driver(self) -> None:
        """When this returns it is gone, and nobody takes it for living."""
        pid = self.driver()
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: not alive([pid]))

    def pid(self, rank: int, *, node: int, attempt: int = 1) -> int:
        """As that node counts its processes. Ranks may be up before their agent has written it."""
        files = self.run.attempt(attempt)
        wait_for((files.root / pids_file(node)).exists)
        return int(read_json(files.root / pids_file(node))[str(rank)])

    def attempts(self) -> list[dict[str, Any]]:
        return list(read_lines(self.run.attempts_log))

    def has_no_way_on(self) -> None:
        """As a rank says it that refuses; it ends a moment later, by whoever asks for this."""
        said = ErrorRecord(time.time(), 2, "?", "RunFolderError", "no way on", int(Exit.STOP))
        write_record(self.run.attempt(1).error, said)

    def put_states_in_memory(self) -> Path:
        """On every machine, as its ranks would had they any to keep; the folder of all of them."""
        memory = MemoryFiles(Path("/dev/shm"), read_record(self.run).run_id)
        for node in self.lab.nodes[: self.nodes]:
            node.sh(f"umask 077; mkdir -p {memory.own(0, '0001.0')}")
        return memory.base

    def spec(self, attempt: int) -> dict[str, Any]:
        found: dict[str, Any] = read_json(self.run.attempt(attempt).root / "submission/ranks.json")
        return found

    def log(self) -> str:
        return (self.run.root / "driver.log").read_text()

    def processes(self) -> list[str]:
        """Drivers, agents and ranks of this run, on all machines."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes()
                state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            carries = any(word in command for word in _CARRIED)
            if state != "Z" and carries and os.fsencode(self.run.root) + b"\0" in command:
                found.append(command.decode(errors="replace").replace("\0", " "))
        return found


def agent_of(run: SshRun, rank: int) -> int:
    """The pid, as seen from here, of the agent of a node."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        is_agent = b"launch.agent" in words and os.fsencode(run.run.root) in words
        if is_agent and words[words.index(b"--node-rank") + 1] == str(rank).encode():
            return int(folder.name)
    raise AssertionError(f"no agent of node {rank}")


def _word(value: object) -> str:
    """As Hydra reads it: one string, whatever stands in it."""
    return json.dumps(str(value))


def _list(value: object) -> str:
    return f"[{_word(value)}]"
