"""Runs on the Slurm of tests/helpers/slurm_cluster.py, with ranks that do not compute."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.helpers.slurm_cluster import PATIENCE_S, Cluster
from trainer.records.json_file import read_json, read_lines
from trainer.records.run_files import RunFiles

RANKS = 4


@dataclass
class SlurmRun:
    """One run of fake ranks on two nodes. `job`: the newest that it was handed over as."""

    cluster: Cluster
    run: RunFiles
    env: dict[str, str]
    settings: list[str]
    job: str = ""
    said: str = ""
    before: list[str] = field(default_factory=list)  # words before the command

    def submit(self, verb: str = "train", *more: str, check: bool = True) -> SlurmRun:
        words = [*self.before, sys.executable, "-m", "tests.helpers.fake_ranks", verb]
        words += [*self.settings, *more] if verb == "train" else [str(self.run.root), *more]
        self.said = self.cluster.login.run(words, env=self.env, check=check)
        found = re.search(r"jobs? (\d+)", self.said)
        self.job = found[1] if found else ""
        return self

    def longhaul(self, *words: str, check: bool = True) -> str:
        argv = [sys.executable, "-m", "launch", *words]
        return self.cluster.login.run(argv, env=self.env, check=check)

    def until_up(self, attempt: int = 1, *, ranks: Sequence[int] = range(RANKS)) -> SlurmRun:
        folder = self.run.attempt(attempt).root
        self.cluster.wait(lambda: all((folder / f"up-{rank}").exists() for rank in ranks))
        return self

    def until_over(self, *states: str, seconds: float = PATIENCE_S) -> str:
        over = states or ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        return self.cluster.until_state(self.job, *over, seconds=seconds)

    @property
    def state(self) -> str:
        """As `longhaul status` has it."""
        found = json.loads(self.longhaul("status", str(self.run.root), "--json"))
        return str(found[0]["state"])

    def until_state_of_run(self, state: str) -> str:
        return str(self.cluster.wait(lambda: (s := self.state) == state and s))

    @property
    def lines(self) -> list[dict[str, Any]]:
        return list(read_lines(self.run.attempts_log))

    @property
    def ends(self) -> list[tuple[int, str, int, str | None]]:
        return ends_of(self.run)

    @property
    def words(self) -> str:
        """What the job itself printed."""
        return "".join(p.read_text() for p in sorted(self.run.root.glob("slurm-*.out")))

    def job_of(self, attempt: int) -> str:
        path = self.run.attempt(attempt).root / "submission" / "job.json"
        return str(read_json(path)["job"])


def slurm_run(
    cluster: Cluster, folder: Path, what: dict[str, list[str]], *settings: str, name: str = "run"
) -> SlurmRun:
    """`what`: each rank's behaviour (tests/helpers/fake_worker.py); "all" for those not named."""
    every = what.pop("all", ["finish"])
    behaviours = {str(rank): every for rank in range(RANKS)} | what
    env = cluster.env({"FAKE_BEHAVIOUR": json.dumps(behaviours)})
    shared = [
        "launch=slurm",
        "launch.gpus=none",
        "launch.grace_s=20",
        "launch.environment=[PATH,HOME,PYTHONPATH,FAKE_BEHAVIOUR]",
        "resources.nodes=2",
        "resources.ranks_per_node=2",
        "batch.micro_batch_size=4",
        f"data.store_root={folder / 'stores'}",
        f"run.root={folder / 'runs'}",
        f"run.name={name}",
    ]
    return SlurmRun(cluster, RunFiles(folder / "runs" / name), env, [*shared, *settings])


def several(one: SlurmRun, *settings: str) -> list[SlurmRun]:
    """The runs that `train -m` hands over with one run's settings and these, in their order."""
    words = [sys.executable, "-m", "tests.helpers.fake_ranks", "train", "-m"]
    said = one.cluster.login.run([*words, *one.settings, *settings], env=one.env)
    rows = re.findall(r"^  (\d+_\d+)  (.+)$", said, re.M)
    return [replace(one, run=RunFiles(Path(root)), job=job, said=said) for job, root in rows]


def ends_of(run: RunFiles) -> list[tuple[int, str, int, str | None]]:
    lines = read_lines(run.attempts_log)
    return [(x["attempt"], x["action"], x["exit_code"], x["cause"]) for x in lines]


def pid_of(run: RunFiles, rank: int, *, program: bytes = b"fake_worker") -> int:
    """The process as this machine numbers it: nodes count their own."""
    needles = {f"RANK={rank}".encode(), f"SLURM_PROCID={rank}".encode()}
    root = str(run.root).encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command, env = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
        except OSError:
            continue
        if root in command and program in command and needles & set(env.split(b"\0")):
            return int(folder.name)
    raise AssertionError(f"rank {rank} does not run")
