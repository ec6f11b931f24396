"""ended.json: how the ranks of an attempt ended, as their nodes saw it. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.node.ranks_spec import RANKS_FILE
from launch.run.node_record import NodeRecord, read_nodes
from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles


@dataclass(frozen=True)
class Ended:
    """ended.json, written by the agent: how every rank of its node ended. Under a driver each agent
    writes ended-K.json, and the driver puts them together.

    A code below zero is minus the signal that ended the rank, as in `subprocess`.
    """

    time: float
    codes: dict[str, int]  # by rank, as text: JSON has no other keys
    killed_by_user: bool = False  # Ctrl-C twice
    first_failed_rank: int | None = None
    told_to_stop: bool = False  # on this node, not by its driver
    lost: tuple[str, ...] = ()  # nodes of which nobody can say how their ranks ended


def how_it_ended(files: AttemptFiles) -> Ended | None:
    """As whoever carried the attempt wrote it; else as the nodes say, if every one of them does.

    A scheduler may end the one that puts the nodes together before it has: their ranks saved or
    did not save all the same.
    """
    return read_ended(files.ended) or together(files) or _of_tasks(files)


def _of_tasks(files: AttemptFiles) -> Ended | None:
    nodes, records = _num_nodes(files), read_nodes(files)
    said = [r for r in records if r.over and len(r.codes) == len(r.ranks)]
    whole = 0 < nodes <= len(said) == len(records)
    return ended_of_records(records) if whole else None


def ended_of_records(records: Sequence[NodeRecord]) -> Ended | None:
    """None if no record says how a rank ended."""
    codes: dict[str, int] = {}
    for record in records:
        codes |= record.codes
    if not codes:
        return None
    ordered = dict(sorted(codes.items(), key=lambda item: int(item[0])))
    return Ended(time=max(record.time for record in records), codes=ordered)


def write_ended(path: Path, ended: Ended) -> None:
    write_json(path, asdict(ended))


def read_ended(path: Path) -> Ended | None:
    try:
        values: dict[str, Any] = read_json(path)
        return Ended(**values | {"lost": tuple(values.get("lost", ()))})
    except (FileNotFoundError, ValueError, TypeError):
        return None


def ended_of(files: AttemptFiles, node: int) -> Path:
    """Where the agent of one node of several says how its ranks ended."""
    return files.root / f"ended-{node}.json"


def together(files: AttemptFiles, *, lost: Sequence[str] = ()) -> Ended | None:
    """What the agents of all nodes wrote, as one; None if the driver died before they had.

    `lost`: the nodes that will not say.
    """
    nodes = _num_nodes(files)
    if not nodes:
        return None
    parts = [part for node in range(nodes) if (part := read_ended(ended_of(files, node)))]
    if not parts or len(parts) + len(lost) < nodes:
        return None if not lost else Ended(time.time(), _codes(parts), lost=tuple(lost))
    first = min((p for p in parts if p.first_failed_rank is not None), key=_time, default=None)
    return Ended(
        time=max(part.time for part in parts),
        codes=_codes(parts),
        killed_by_user=any(part.killed_by_user for part in parts),
        first_failed_rank=first.first_failed_rank if first else None,
        lost=tuple(lost),
    )


def _codes(parts: Sequence[Ended]) -> dict[str, int]:
    codes = {rank: code for part in parts for rank, code in part.codes.items()}
    return dict(sorted(codes.items(), key=lambda item: int(item[0])))


def _time(part: Ended) -> float:
    return part.time


def _num_nodes(files: AttemptFiles) -> int:
    """0 if nobody can say."""
    try:
        return int(read_json(files.root / RANKS_FILE)["nodes"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0
