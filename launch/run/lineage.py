"""What each attempt of a run went on from: written when it is made, shown later. No pydantic."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launch.run.attempts import read_lines_of
from launch.run.run_folder import attempts, installed_versions
from trainer.records.lineage import Descent, read_lineage, write_descent
from trainer.records.run_files import RunFiles

if TYPE_CHECKING:  # agents start without it
    from trainer.changes import Change


def write_lineage(
    run: RunFiles, attempt: int, *, world_size: int, found: Sequence[Change] = ()
) -> None:
    """The attempt's line. A disk that refuses it ends nothing: the plan says the same."""
    earlier = [files.number for files in attempts(run) if files.number < attempt]
    parent = earlier[-1] if earlier else None
    with suppress(OSError):
        descent = Descent(
            attempt=attempt,
            parent=parent,
            cause=_end_of(run, parent),
            world_size=world_size,
            bitexact=all(change.keeps_bits for change in found),
            changes=tuple(asdict(change) for change in found),
            versions=installed_versions(),
            time=time.time(),
        )
        write_descent(run.lineage, descent)


def _end_of(run: RunFiles, attempt: int | None) -> str:
    for line in read_lines_of(run):
        if line.get("attempt") == attempt:
            return str(line["why"])
    return ""


def rows(run: RunFiles) -> list[dict[str, object]]:
    """One row an attempt, for people."""
    return [
        {
            "attempt": one.attempt,
            "after": one.parent,
            "from step": "not loaded" if one.step is None else one.step,
            "checkpoint": one.checkpoint[:12] or None,
            "place": one.place or None,
            "world": one.world_size,
            "bit for bit": "yes" if one.bitexact else "no",
            "changed": ", ".join(_brief(change) for change in one.changes) or None,
            "the one before": one.cause or None,
        }
        for one in read_lineage(run.lineage)
    ]


def _brief(change: Any) -> str:
    return f"{change['where']} {change['old']} -> {change['new']}"
