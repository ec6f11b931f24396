"""Packing: every example once, no row too long, rows nearly full, in bounded memory, repeatably."""

from __future__ import annotations

import random

import numpy as np
import pytest

from trainer.data import best_fit
from trainer.data.best_fit import packed_rows, windows


def lengths_like(name: str, count: int) -> np.ndarray:
    draw = np.random.default_rng(7)
    match name:
        case "short":
            found = draw.geometric(1 / 40, count)
        case "chat":
            found = draw.lognormal(4.5, 0.8, count).astype(np.int64)
        case _:
            found = draw.integers(1, 513, count)
    return np.clip(found, 1, 512).astype(np.int64)


@pytest.mark.parametrize("name", ["short", "chat", "uniform"])
def test_rows_hold_every_example_once_and_are_nearly_full(name: str) -> None:
    lengths = lengths_like(name, 20_000)
    rows = list(packed_rows(windows(lengths), 512))
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    filled = [int(lengths[row].sum()) for row in rows]
    assert max(filled) <= 512
    assert sum(filled) / (512 * len(rows)) >= 0.995


def test_each_example_goes_where_the_least_room_is_left() -> None:
    """By hand: 6 and 5 open rows of 10, 4 fills the first, 3 and 2 the second."""
    lengths = np.array([2, 3, 4, 5, 6], dtype=np.int64)
    rows = [set(row) for row in packed_rows(windows(lengths), 10)]
    assert sorted(map(sorted, rows)) == [[0, 1, 3], [2, 4]]


def test_windows_bound_what_is_open_and_lose_little(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = lengths_like("short", 20_000)
    monkeypatch.setattr(best_fit, "WINDOW", 1_000)
    monkeypatch.setattr(best_fit, "_MOST_OPEN", 50)
    rows = list(packed_rows(windows(lengths), 512))
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert int(lengths.sum()) / (512 * len(rows)) >= 0.98
    opened = best_fit._OpenRows(10)
    for number in range(200):
        opened.add(number, 6)
    assert len(list(opened.closed(least=0.98))) == 150  # the rest may still be filled


def test_the_same_lengths_give_the_same_rows() -> None:
    lengths = lengths_like("chat", 3_000)
    assert list(packed_rows(windows(lengths), 512)) == list(packed_rows(windows(lengths), 512))


def test_neighbours_of_one_length_part_ways() -> None:
    """A file sorted by class must not become rows of one class."""
    lengths = np.full(1_000, 32, dtype=np.int64)
    rows = list(packed_rows(windows(lengths), 128))
    classes = [{n // 250 for n in row} for row in rows]
    assert sum(len(found) > 1 for found in classes) > 0.9 * len(rows)


def test_a_row_of_one_and_no_example_at_all() -> None:
    assert list(packed_rows(windows(np.array([512])), 512)) == [[0]]
    assert list(packed_rows(windows(np.zeros(0, dtype=np.int64)), 512)) == []
    draw = random.Random(3)
    for _ in range(50):
        lengths = np.array([draw.randint(1, 9) for _ in range(draw.randint(1, 40))])
        rows = list(packed_rows(windows(lengths), 9))
        assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
        assert all(lengths[row].sum() <= 9 for row in rows)
