"""Examples -> packed rows, best-fit decreasing, in windows: decided once, when data is prepared.

A window of examples is sorted by length; each goes into the fullest row that still has room. Rows
that are nearly full when a window ends are closed, the others stay open for the next one, so memory
is that of one window however many examples there are, and nothing depends on chance.
Source: best-fit decreasing, Johnson 1973; for sequences Krell et al. 2021, sec. 3.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from trainer.data.order import Indices, scrambled

WINDOW = 1 << 16  # examples
_FULL = 0.98  # of a row: filled so far, it is closed where a window ends
_MOST_OPEN = 4_096  # rows that stay open


def packed_rows(lengths: Iterable[Indices], row_tokens: int) -> Iterator[list[int]]:
    """Rows of numbers of examples, each of at most `row_tokens` together.

    `lengths`: of the examples in their order, in windows (`windows`); each in [1, row_tokens].
    """
    open_rows = _OpenRows(row_tokens)
    first = 0
    for window in lengths:
        # Among equal lengths by a hash: neighbours in a file, often of one class, part ways.
        numbers = np.arange(first, first + len(window), dtype=np.int64)
        order = np.lexsort((scrambled(numbers.view(np.uint64)), -window))
        for number, length in zip(numbers[order].tolist(), window[order].tolist(), strict=True):
            open_rows.add(number, length)
        yield from open_rows.closed(least=_FULL)
        first += len(window)
    yield from open_rows.closed(least=0.0)


def windows(lengths_E: Indices) -> Iterator[Indices]:
    for begin in range(0, len(lengths_E), WINDOW):
        yield np.asarray(lengths_E[begin : begin + WINDOW])


class _OpenRows:
    """Rows by the room they have left; `_has` has bit r set where a row with room r is open."""

    def __init__(self, row_tokens: int) -> None:
        self._row_tokens = row_tokens
        self._by_room: dict[int, list[list[int]]] = {}
        self._has = 0

    def add(self, number: int, length: int) -> None:
        fitting = self._has >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1  # the least room that will do
            row = self._taken(room)
        else:
            room, row = self._row_tokens, []
        row.append(number)
        self._put(room - length, row)

    def closed(self, *, least: float) -> Iterator[list[int]]:
        """Rows filled to `least` of their length, and the fullest beyond those that may stay."""
        most_room = int((1 - least) * self._row_tokens)
        beyond = sum(len(rows) for room, rows in self._by_room.items() if room > most_room)
        for room in sorted(self._by_room):
            count = len(self._by_room[room])
            if room > most_room:
                count = min(count, beyond - _MOST_OPEN)
                beyond -= count
            for _ in range(count):
                yield self._taken(room)

    def _taken(self, room: int) -> list[int]:
        rows = self._by_room[room]
        row = rows.pop()
        if not rows:
            del self._by_room[room]
            self._has &= ~(1 << room)
        return row

    def _put(self, room: int, row: list[int]) -> None:
        self._by_room.setdefault(room, []).append(row)
        self._has |= 1 << room
