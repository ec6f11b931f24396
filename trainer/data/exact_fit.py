"""Examples -> packed rows, filled to the token where that can be: the other way beside best_fit.py.

A row begins with the longest example that is left and takes the longest that fits, until one or two
examples fill what remains exactly. A window of examples is packed at a time, so memory is that of
one window however many there are; what filled its rows badly waits for the next one.

Best-fit leaves rows open by less than the shortest example, which this closes; where two or three
examples make a row, this uses up the short ones too soon. AG News, share of rows that is filled, by
their length: 128: 95.4 % and 90.9 % (this way); 256: 98.2 and 99.1; 512: 99.1 and 99.8.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np

from trainer.data.best_fit import WINDOW
from trainer.data.order import Indices, scrambled

_FULL = 0.98  # of a row: filled less, its examples wait for the next window


def exact_rows(lengths: Iterable[Indices], row_tokens: int) -> Iterator[list[int]]:
    """Rows of numbers of examples, each of at most `row_tokens` together.

    `lengths`: of the examples in their order, in windows (`best_fit.windows`), each at least 1.
    """
    pool = _Pool()
    first = 0
    for window in lengths:
        # Among equal lengths by a hash: neighbours in a file, often of one class, part ways.
        numbers = np.arange(first, first + len(window), dtype=np.int64)
        order = np.argsort(scrambled(numbers.view(np.uint64)), kind="stable")
        for number, length in zip(numbers[order].tolist(), window[order].tolist(), strict=True):
            pool.add(number, length)
        first += len(window)
        yield from _rows(pool, row_tokens, least=_FULL)
    yield from _rows(pool, row_tokens, least=0.0)


def _rows(pool: _Pool, row_tokens: int, *, least: float) -> Iterator[list[int]]:
    """All that is in the pool, but for the examples of rows filled less than `least`, half a window
    of them at most: those stay."""
    waiting: list[tuple[int, int]] = []
    while pool.has:
        row = _row(pool, row_tokens)
        filled = sum(length for _, length in row)
        if filled < least * row_tokens and len(waiting) + len(row) <= WINDOW // 2:
            waiting += row
        else:
            yield [number for number, _ in row]
    for number, length in waiting:
        pool.add(number, length)


def _row(pool: _Pool, row_tokens: int) -> list[tuple[int, int]]:
    """(number, length) of the examples of the next row."""
    longest = pool.has.bit_length() - 1
    row = [(pool.take(longest), longest)]
    room = row_tokens - longest
    while room:
        last = pool.filling(room)
        if not last:
            return row
        row += [(pool.take(length), length) for length in last]
        room -= sum(last)
    return row


class _Pool:
    """Examples by length; `has` has bit n set where there is one of n tokens."""

    def __init__(self) -> None:
        self._by_length: defaultdict[int, list[int]] = defaultdict(list)
        self.has = 0

    def add(self, number: int, length: int) -> None:
        self._by_length[length].append(number)
        self.has |= 1 << length

    def take(self, length: int) -> int:
        numbers = self._by_length[length]
        number = numbers.pop()
        if not numbers:
            self.has &= ~(1 << length)
        return number

    def filling(self, room: int) -> tuple[int, ...]:
        """Lengths that fill the room to the token, one or two; else the longest that fits."""
        fitting = self.has & ((2 << room) - 1)
        if not fitting or fitting >> room:
            return (room,) if fitting else ()
        # bit n of `mirrored` is bit room - n of `fitting`: both are set where n + (room - n) fit
        mirrored = int(f"{fitting:0{room + 1}b}"[::-1], 2)
        both = fitting & mirrored
        if both and not room % 2 and len(self._by_length[room // 2]) < 2:
            both &= ~(1 << room // 2)
        if both:
            longer = both.bit_length() - 1
            return (longer, room - longer)
        return (fitting.bit_length() - 1,)
