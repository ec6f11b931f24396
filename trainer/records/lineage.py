"""lineage.jsonl: what each attempt of a run went on from, and what was changed. Append-only.

Two lines an attempt:

    attempt  by whoever starts it: attempt, parent, cause (how the parent ended), world_size,
             bitexact, changes (where, old, new, kind, meaning, numbers), versions, time
    loaded   by rank 0, once it is true: attempt, step, checkpoint (its identity: the sha256 of its
             manifest), written_by (the attempt that saved it), place (in whose memory it
             lay; "": on the disk, or in a copy elsewhere)

`bitexact`: nothing was changed that could change a bit of what follows. A torn last line is left
out. Standard library only.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.records.json_file import append_line, end_torn_line, read_lines
from trainer.records.manifest import MANIFEST_NAME, digest_of

_END_BYTES = 4096
_ATTEMPT = re.compile(rb'^"attempt":(\d+),$', re.MULTILINE)


@dataclass(frozen=True)
class Descent:
    """One attempt. `step` None: it has not loaded anything (yet); 0: it began anew."""

    attempt: int
    parent: int | None
    cause: str
    world_size: int
    bitexact: bool
    changes: tuple[Mapping[str, Any], ...]
    versions: Mapping[str, str]
    time: float
    step: int | None = None
    checkpoint: str = ""
    written_by: int | None = None
    place: str = ""


def write_descent(path: Path, descent: Descent) -> None:
    line = {
        "event": "attempt",
        "attempt": descent.attempt,
        "parent": descent.parent,
        "cause": descent.cause,
        "world_size": descent.world_size,
        "bitexact": descent.bitexact,
        "changes": [dict(change) for change in descent.changes],
        "versions": dict(descent.versions),
        "time": round(descent.time, 3),
    }
    end_torn_line(path)
    append_line(path, line)


def write_loaded(
    path: Path,
    *,
    attempt: int,
    step: int,
    checkpoints: Path,
    memory: tuple[str, str, int] | None = None,
) -> None:
    """Rank 0: the attempt goes on after `step`. `checkpoints`: the folder of step folders.

    `memory`: place, identity and attempt of a state that lay in memory. A disk that refuses the
    line ends nothing.
    """
    checkpoint, written_by = _identity(checkpoints / f"step-{step:08d}" / MANIFEST_NAME)
    line = {"event": "loaded", "attempt": attempt, "step": step, "time": round(time.time(), 3)}
    place = ""
    if memory is not None:
        place, checkpoint, written_by = memory
    with suppress(OSError):
        end_torn_line(path)
        append_line(
            path, line | {"checkpoint": checkpoint, "written_by": written_by, "place": place}
        )


def _identity(manifest: Path) -> tuple[str, int | None]:
    """("", None) where the step is not in this place: nothing was saved, or it lies elsewhere.

    Both ends are enough: of many ranks a manifest has megabytes, and the loader has checked them.
    """
    try:
        with manifest.open("rb") as file:
            head = file.read(_END_BYTES)
            file.seek(max(0, manifest.stat().st_size - _END_BYTES))
            tail = file.read()
    except OSError:
        return "", None
    found = _ATTEMPT.search(head)
    return digest_of(tail), int(found[1]) if found else None


def read_lineage(path: Path) -> list[Descent]:
    """Oldest first; an attempt of which nothing but `loaded` is known is left out."""
    lines = [line for line in read_lines(path) if isinstance(line, dict)]
    loaded = {line.get("attempt"): line for line in lines if line.get("event") == "loaded"}
    begun = {line["attempt"]: line for line in lines if line.get("event") == "attempt"}
    return [_descent(line, loaded.get(attempt, {})) for attempt, line in begun.items()]


def branches(path: Path) -> list[str]:
    """A name for every attempt that went on as another training: "branch-at-step-100"."""
    return [
        f"branch-at-step-{one.step or 0}"
        for one in read_lineage(path)
        if any(change["kind"] == "branch" for change in one.changes)
    ]


def _descent(line: Mapping[str, Any], loaded: Mapping[str, Any]) -> Descent:
    changes: Sequence[Mapping[str, Any]] = line["changes"]
    return Descent(
        attempt=line["attempt"],
        parent=line["parent"],
        cause=line["cause"],
        world_size=line["world_size"],
        bitexact=line["bitexact"],
        changes=tuple(changes),
        versions=line["versions"],
        time=line["time"],
        step=loaded.get("step"),
        checkpoint=loaded.get("checkpoint", ""),
        written_by=loaded.get("written_by"),
        place=loaded.get("place", ""),
    )
