"""Frames in a terminal: only lines that changed are sent, in one write, so that ssh keeps up."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from types import TracebackType
from typing import TextIO

_OTHER, _BACK = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # screen of its own, cursor hidden


class Screen:
    """The terminal's other screen for as long as it is open; what was there comes back."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: list[str] = []
        self._size = (0, 0)

    def __enter__(self) -> Screen:
        self._out.write(_OTHER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._out.write(_BACK)
        self._out.flush()

    def show(self, lines: Sequence[str], size: tuple[int, int]) -> None:
        """`size`: columns and rows; what is beyond them is cut."""
        columns, rows = size
        lines = [line[:columns] for line in lines[:rows]]
        parts = []
        if size != self._size:
            parts.append("\x1b[2J")
            self._shown, self._size = [], size
        for row in range(max(len(lines), len(self._shown))):
            line = lines[row] if row < len(lines) else ""
            if row >= len(self._shown) or self._shown[row] != line:
                parts.append(f"\x1b[{row + 1};1H{line}\x1b[K")
        self._shown = list(lines)
        if parts:
            self._out.write("".join(parts))
            self._out.flush()


def size_now() -> tuple[int, int]:
    """Columns and rows; 80 and 24 where nobody knows."""
    found = shutil.get_terminal_size()
    return found.columns, found.lines
