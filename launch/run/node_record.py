"""attempts/N/nodes/node-00003.json: how the ranks of one node ended, by its first task.

The attempt's ended.json is made of them. Standard library only.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from trainer.records.json_file import read_json, write_json
from trainer.records.run_files import AttemptFiles


@dataclass(frozen=True)
class NodeRecord:
    """Written when the node begins and again when all its ranks have ended (`over`).

    `codes` by rank, as text; below zero: minus the signal that ended it.
    """

    node: int
    host: str
    ranks: tuple[int, ...]
    over: bool = False
    codes: dict[str, int] = field(default_factory=dict)
    time: float = 0.0


def write_node(files: AttemptFiles, record: NodeRecord) -> None:
    folder = _folder(files)
    folder.mkdir(mode=0o700, exist_ok=True)
    write_json(folder / f"node-{record.node:05d}.json", asdict(record) | {"time": time.time()})


def read_nodes(files: AttemptFiles) -> list[NodeRecord]:
    """What can be read of them, by number."""
    found = []
    for path in sorted(_folder(files).glob("node-*.json")):
        try:
            value = read_json(path)
            found.append(NodeRecord(**value | {"ranks": tuple(value["ranks"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return found


def silent_hosts(records: Sequence[NodeRecord]) -> list[str]:
    """Nodes that began and never said how it ended, if others did: gone, or cut off."""
    if not any(record.over for record in records):
        return []
    return [record.host for record in records if not record.over]


def _folder(files: AttemptFiles) -> Path:
    return files.root / "nodes"
