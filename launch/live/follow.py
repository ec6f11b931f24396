"""What a growing metrics.jsonl says, read on from where it was read before."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_FIRST_BYTES = 8 << 20  # of a file that is longer: the end, or months would be read first
_MOST = 4096  # points of a curve; no terminal is wider

Point = tuple[int, float]  # step, value


@dataclass
class Curve:
    """Points by step, thinned evenly when there are too many. Going back drops what is redone."""

    points: list[Point] = field(default_factory=list)

    def add(self, step: int, value: float) -> None:
        while self.points and self.points[-1][0] >= step:
            self.points.pop()
        self.points.append((step, value))
        if len(self.points) > _MOST:
            self.points = [*self.points[:-1:2], self.points[-1]]


class Follower:
    """Curves of one run. `names`: what they are of; `newest` has all that the last step said."""

    def __init__(self, path: Path, *, names: Sequence[str]) -> None:
        self.curves = {name: Curve() for name in names}
        self.newest: Mapping[str, Any] = {}
        self.evaluated: Mapping[str, Any] = {}
        self._path = path
        self._at: int | None = None
        self._rest = b""

    def read(self) -> None:
        """Take in what was appended; a file that is not there yet, or shrank, is no error."""
        try:
            with self._path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if self._at is None or size < self._at:
                    self._at, self._rest = max(0, size - _FIRST_BYTES), b""
                file.seek(self._at)
                content = file.read(size - self._at)
        except OSError:
            return
        self._at += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        for line in lines:
            self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            value = json.loads(line)
        except ValueError:
            return  # cut off at the start, or torn by a kill
        if not isinstance(value, dict) or not isinstance(value.get("step"), int):
            return
        if value.get("kind", "step") == "eval":
            self.evaluated = value
        elif value.get("kind", "step") == "step":
            self.newest = value
        for name, curve in self.curves.items():
            found = value.get(name)
            if isinstance(found, int | float):
                curve.add(value["step"], float(found))
