"""One agent in a process of its own, on ranks without torch (tests/helpers/fake_worker.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from launch.node.ranks_spec import RANKS_FILE, RanksSpec, spec_text
from launch.run.budgets import RestartRules
from trainer.records.run_files import RunFiles

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 200.0  # of a slow machine: nobody waits for what is there


class Attempt:
    """One agent in a process of its own, on fake ranks."""

    def __init__(
        self,
        root: Path,
        *behaviours: list[str],
        port: int = 0,
        grace_s: float = 10.0,
        restart: RestartRules | None = None,
        later: dict[str, list[str]] | None = None,
    ):
        """`behaviours` by rank; `later`: by "attempt:rank" for those that differ."""
        self.run = RunFiles(root / "run")
        self.files = self.run.attempt(1)
        (self.files.root / "submission").mkdir(parents=True)
        what = {str(rank): each for rank, each in enumerate(behaviours)} | (later or {})
        self.env = dict(os.environ) | {"FAKE_BEHAVIOUR": json.dumps(what)}
        spec = RanksSpec(
            module="tests.helpers.fake_worker",
            nodes=1,
            ranks_per_node=len(behaviours),
            device="cpu",
            threads_per_rank=1,
            rendezvous_port=port,
            grace_s=grace_s,
            restart=restart or RestartRules(),
        )
        (self.files.root / RANKS_FILE).write_text(spec_text(spec))
        self.world_size = len(behaviours)
        self.arguments: list[str] = []
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Attempt:
        argv = [sys.executable, "-m", "launch.agent", str(self.run.root), "--attempt", "1"]
        argv += self.arguments
        self.process = subprocess.Popen(
            argv,
            cwd=REPOSITORY,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def until_up(self) -> Attempt:
        wait_for(lambda: all((self.files.root / f"up-{r}").exists() for r in self.ranks))
        return self

    @property
    def ranks(self) -> range:
        return range(self.world_size)

    def pid(self, rank: int) -> int:
        wait_for(lambda: (self.files.root / f"up-{rank}").read_text() != "")
        return int((self.files.root / f"up-{rank}").read_text())

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        assert self.process is not None
        out, err = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, out, err


def wait_for(condition: Callable[[], bool], *, seconds: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def until_stopped(*pids: int) -> None:
    """A SIGSTOP that was sent takes effect some time later: until then they go on."""

    def stand_still() -> bool:
        states = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for pid in pids)
        return {state.split()[0] for state in states} <= {"T", "Z"}

    wait_for(stand_still)


def still_alive(run: RunFiles) -> list[str]:
    """Processes of this run, by command line or by the agent's mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        ours = str(run.root).encode()
        if state != "Z" and ours in command + environment:
            found.append(f"{folder.name} {command!r}")
    return found
