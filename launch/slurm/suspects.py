"""Nodes that shall carry no further attempt of a run. Standard library only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from launch.node.failure import read_failure
from launch.outcome import Outcome
from launch.run.attempts import read_lines_of
from launch.run.budgets import window
from launch.run.node_record import read_nodes, silent_hosts
from trainer.records.run_files import AttemptFiles, RunFiles

_OFTEN = 2  # failures in a row on one node


@dataclass(frozen=True)
class Suspects:
    """`certain`: not to be used again, even if that means to wait for others."""

    hosts: tuple[str, ...] = ()
    certain: bool = False
    why: str = ""


def suspected(run: RunFiles, files: AttemptFiles, outcome: Outcome) -> Suspects:
    """Nodes that went silent, whose numbers were wrong, or where it failed twice in a row."""
    records = read_nodes(files)
    silent = silent_hosts(records)
    if silent and outcome.cause == "node":
        return Suspects(tuple(silent), certain=True, why="no word from there")
    host = _host_of_failure(files)
    if host and outcome.cause == "hardware":
        return Suspects((host,), certain=True, why="its numbers were wrong")
    if host and len(records) > 1 and outcome.cause in ("crash", "hang"):
        before = list(_failures(run, before=files.number))[: _OFTEN - 1]
        if len(before) == _OFTEN - 1 and all(each == host for each in before):
            return Suspects((host,), why=f"it failed there {_OFTEN} times in a row")
    return Suspects()


def _failures(run: RunFiles, *, before: int) -> Iterator[str]:
    """Where the attempts before failed, newest first, since the run was last looked at."""
    lines = [line for line in read_lines_of(run) if line.get("attempt", 0) < before]
    for line in reversed(window(lines)):
        yield _host_of_failure(run.attempt(int(line["attempt"])))


def _host_of_failure(files: AttemptFiles) -> str:
    """As Slurm names the node of the rank that failed first; empty if nobody knows."""
    error = read_failure(files)
    if error is None:
        return ""
    return next((r.host for r in read_nodes(files) if error.rank in r.ranks), "")
