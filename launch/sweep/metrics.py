"""What a trial has reported, from its run's metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from launch.sweep.rungs import Points
from trainer.records.json_file import read_lines

_NO_VALUES = ("kind", "attempt", "time", "step", "samples", "eval_seconds")


def lines_of(path: Path, metric: str) -> list[dict[str, Any]]:
    """Of the kind that `metric` would be in."""
    kind = "eval" if metric.startswith("eval_") else "step"
    return [line for line in read_lines(path) if line.get("kind") == kind]


def points_of(lines: Iterable[Mapping[str, Any]], metric: str) -> Points:
    """Each step once: what the last attempt that did it said. An evaluation may have two lines, one
    of them with samples alone.
    """
    found = {
        int(line["step"]): float(line[metric]) for line in lines if line.get(metric) is not None
    }
    return sorted(found.items())


def names_in(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the first line that has values calls them; empty before there is one."""
    for line in lines:
        if names := [name for name in line if name not in _NO_VALUES]:
            return names
    return []
