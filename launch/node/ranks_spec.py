"""ranks.json: what an agent must know to start the ranks of its node. Standard library only.

Plain numbers out of the plan, because reading the plan itself needs pydantic (0.2 s of CPU).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launch.run.budgets import RestartRules
from launch.watch.limits import WatchRules
from trainer.errors import RunFolderError
from trainer.records.json_file import read_json
from trainer.records.run_files import AttemptFiles

RANKS_FILE = "submission/ranks.json"  # under the attempt's folder
WORKER = "trainer.worker"


@dataclass(frozen=True)
class RanksSpec:
    module: str  # what the ranks run: python -m MODULE RUN_FOLDER --attempt N
    nodes: int
    ranks_per_node: int
    device: str  # cpu, cuda
    threads_per_rank: int
    rendezvous_port: int  # 0: a free one
    grace_s: float  # from "save and stop" to SIGKILL
    most_nodes: int = 0  # that are wanted; `nodes` is how many this attempt has
    least_nodes: int = 0
    lease_s: float = 30.0  # who is silent so long is dead
    restart: RestartRules = field(default_factory=RestartRules)
    watch: WatchRules = field(default_factory=WatchRules)

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node

    def ranks_of(self, node: int) -> range:
        first = node * self.ranks_per_node
        return range(first, first + self.ranks_per_node)


def spec_text(spec: RanksSpec) -> str:
    return json.dumps(asdict(spec), indent=2) + "\n"


def spec_of_attempt(files: AttemptFiles) -> RanksSpec:
    """Raises: RunFolderError if it is no attempt of a run, or one of another version."""
    path = files.root / RANKS_FILE
    try:
        return read_spec(path)
    except FileNotFoundError:
        raise RunFolderError(f"{files.root} is no attempt of a run: no {RANKS_FILE}") from None
    except (ValueError, TypeError) as e:
        raise RunFolderError(f"{path} cannot be read ({e}); start a new attempt") from e


def read_spec(path: Path) -> RanksSpec:
    """Raises: FileNotFoundError, ValueError, TypeError (another version's file)."""
    values: dict[str, Any] = read_json(path)
    rules = {
        "restart": RestartRules(**values.get("restart", {})),
        "watch": WatchRules(**values.get("watch", {})),
    }
    return RanksSpec(**values | rules)
