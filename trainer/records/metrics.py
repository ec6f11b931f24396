"""Reading metrics.jsonl; trainer/observers/jsonl.py writes it and says what its lines hold."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.records.json_file import read_lines


def read_metrics(path: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The lines of one kind by step, each step once: the line of the last attempt that did it.

    An attempt that goes back to a checkpoint does some steps again; the file keeps both lines.
    """
    lines = {line["step"]: line for line in read_lines(path) if line.get("kind") == kind}
    return [lines[step] for step in sorted(lines)]


def is_guard_line(line: Mapping[str, Any]) -> bool:
    """What the guard did. Before it was told apart, the anomaly's kind stood in the line's."""
    return line.get("kind") in ("guard", "non_finite", "spike")
