"""What makes one rank's file in memory count: its part of a state, written after the file.

A state in memory has no manifest of its own: nobody gathers anything while training goes on. Each
rank's part says what a manifest would say of its file, and what all ranks agreed on beforehand. A
load puts the manifest together from all parts of one step of one attempt, and from there on it is
read, checked and refused like any checkpoint's. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DamagedCheckpoint
from trainer.records.manifest import LogicalTensor, Manifest, RankFile, rank_file_name
from trainer.records.memory_files import PART

FORMAT = 1
LIMIT_BYTES = 64 << 20
_NAME = "longhaul-part"
_PLACE = re.compile(r"node-\d{1,7}/(own|of-node-\d{1,7})/\d{4,9}\.[01]")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One rank's. `common`: rule, tensors, origin, equal on all ranks; `training`: rank 0's counts.

    Units: bytes; `spans` in elements; `created` seconds since the epoch.
    """

    run_hash: str
    step: int
    attempt: int
    world_size: int
    rank: int
    size: int
    digest: str
    spans: tuple[tuple[int, int], ...]
    created: float
    parent_step: int | None
    training: Mapping[str, Any]
    common: Mapping[str, Any]


def part_name(rank: int) -> str:
    return Path(rank_file_name(rank)).with_suffix(PART).name


def is_place(text: str) -> bool:
    """Whether it names a generation's folder under MemoryFiles.root, and nothing else."""
    return _PLACE.fullmatch(text) is not None


def common_of(
    rule: str, tensors: Sequence[LogicalTensor], origin: Mapping[str, Any]
) -> dict[str, Any]:
    rows = [[t.name, list(t.shape), list(t.kinds)] for t in tensors]
    return {"rule": rule, "tensors": rows, "origin": dict(origin)}


def common_digest(part: Part) -> str:
    return hashlib.sha256(_text(part.common).encode()).hexdigest()[:32]


def encode(part: Part) -> bytes:
    """Raises: ValueError if it is not plain JSON with finite numbers."""
    fields = {"name": _NAME, "format": FORMAT, **part.__dict__}
    body = f"{_text(fields)}\n".encode()
    return body + f"{hashlib.sha256(body).hexdigest()}\n".encode()


def decode(content: bytes) -> Part:
    """Raises: DamagedCheckpoint. What it says of its file is checked against the file later."""
    body, _, seal = content[:-1].rpartition(b"\n")
    if hashlib.sha256(body + b"\n").hexdigest().encode() != seal:
        raise DamagedCheckpoint("a part does not match the sha256 in its last line")
    try:
        fields = json.loads(body)
        if (fields.pop("name"), fields.pop("format")) != (_NAME, FORMAT):
            raise DamagedCheckpoint("a part of another format")
        spans = tuple((int(a), int(b)) for a, b in fields.pop("spans"))
        part = Part(spans=spans, **fields)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        raise DamagedCheckpoint(f"a part cannot be understood ({e!r})") from e
    whole = (part.step, part.attempt, part.world_size, part.rank, part.size)
    if any(type(v) is not int or v < 0 for v in whole) or not isinstance(part.common, dict):
        raise DamagedCheckpoint("a part whose numbers cannot be")
    return part


def manifest_of(first: Part, files: Sequence[RankFile]) -> Manifest:
    """The state's manifest. `first`: rank 0's part; `files`: of all ranks, in rank order.

    Raises: DamagedCheckpoint if what the part says of tensors is none.
    """
    try:
        tensors = tuple(
            LogicalTensor(str(name), tuple(shape), tuple(kinds))
            for name, shape, kinds in first.common["tensors"]
        )
        rule, origin = first.common["rule"], first.common["origin"]
    except (ValueError, TypeError, KeyError) as e:
        raise DamagedCheckpoint(f"rank 0's part cannot be understood ({e!r})") from e
    return Manifest(
        step=first.step,
        world_size=first.world_size,
        attempt=first.attempt,
        run_hash=first.run_hash,
        parent_step=first.parent_step,
        created=first.created,
        rule=rule,
        tensors=tensors,
        files=tuple(files),
        training=first.training,
        origin=origin,
    )


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
