"""Slurm's own commands: how they are called. Standard library only.

Their answers depend on variables of the environment (SQUEUE_FORMAT, SBATCH_PARTITION and the like),
which are kept from them.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TIMEOUT_S = 60.0
_PREFIXES = ("SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_", "SBATCH_", "SALLOC_", "SLURM_TIME_FORMAT")
_NUMBER = re.compile(r"(\d+)(?:;(\S+))?")
_PATIENCE_S = 60.0  # for a controller that is being restarted


@dataclass(frozen=True)
class Answer:
    """`code` None: the command is not installed, or gave no answer in time."""

    code: int | None
    out: str = ""
    err: str = ""

    @property
    def why(self) -> str:
        """What it complained about, in one line."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return "; ".join(lines)[:300] or f"exit code {self.code}"


def ask(
    argv: Sequence[str], *, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Answer:
    env = plain_environment(os.environ) if env is None else env
    try:
        done = subprocess.run(
            list(argv),
            env=dict(env),
            input=stdin if stdin is not None else "",
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
            check=False,
        )
    except FileNotFoundError:
        return Answer(None, err=f"{argv[0]} is not installed here, or not on PATH")
    except subprocess.TimeoutExpired:
        return Answer(None, err=f"{argv[0]} gave no answer in {TIMEOUT_S:.0f} s")
    return Answer(done.returncode, done.stdout, done.stderr)


def accepted(answer: Answer) -> tuple[str, str] | None:
    """(job, cluster) of what `sbatch --parsable` printed, around which a site may print words of
    its own; None if there is no number."""
    lines = reversed(answer.out.splitlines()) if answer.code == 0 else ()
    found = next((m for line in lines if (m := _NUMBER.fullmatch(line.strip()))), None)
    return (found[1], found[2] or "") if found else None


def lines_of(text: str) -> list[str]:
    """What squeue printed, without the line by which it names a cluster that was asked for."""
    return [line for line in text.splitlines() if line.strip() and not line.startswith("CLUSTER:")]


def on(cluster: str) -> list[str]:
    """The option that names a cluster other than the one of this machine."""
    return [f"--clusters={cluster}"] if cluster else []


def plain_environment(env: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in env.items() if not name.startswith(_PREFIXES)}
    return kept | {"LC_ALL": "C.UTF-8", "SLURM_TIME_FORMAT": "standard"}


def state_of(job: str, *, patience_s: float = _PATIENCE_S) -> str:
    """As `squeue` has it; empty if it does not know, or if nobody could say within `patience_s`."""
    deadline = time.monotonic() + patience_s
    while True:
        answer = ask(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])
        if answer.code == 0 or "Invalid job id" in answer.err or time.monotonic() >= deadline:
            return next((line.strip() for line in lines_of(answer.out)), "")
        time.sleep(2.0)
