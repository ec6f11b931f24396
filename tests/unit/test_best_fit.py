"""Packing: every example once, no row too long, rows nearly full, in bounded memory, repeatably."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from trainer.data import best_fit, exact_fit
from trainer.data.best_fit import packed_rows, windows
from trainer.data.exact_fit import exact_rows

Way = Callable[..., Iterator[list[int]]]


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


WAYS = [packed_rows, exact_rows]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["short", "chat", "uniform"])
def test_rows_hold_every_example_once_and_are_nearly_full(name: str, way: Way) -> None:
    lengths = lengths_like(name, 20_000)
    rows = list(way(windows(lengths), 512))
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


def test_two_examples_ahead_are_enough_to_fill_a_row() -> None:
    """By hand: 7 takes 2 and 1 for the 3 that are missing; best-fit gives it the 2, and 6 the 3."""
    lengths = np.array([7, 6, 4, 2, 1], dtype=np.int64)
    rows = [sorted(lengths[row]) for row in exact_rows(windows(lengths), 10)]
    assert rows == [[1, 2, 7], [4, 6]]
    twice = np.array([6, 2, 2], dtype=np.int64)
    assert [sorted(row) for row in exact_rows(windows(twice), 10)] == [[0, 1, 2]]
    once = np.array([6, 2], dtype=np.int64)  # not twice the one that is there
    assert [sorted(row) for row in exact_rows(windows(once), 10)] == [[0, 1]]


def test_examples_of_bad_rows_wait_for_the_next_window(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.array([6, 6, 4, 4], dtype=np.int64)
    assert len(list(exact_rows([lengths[:2], lengths[2:]], 10))) == 2
    monkeypatch.setattr(exact_fit, "WINDOW", 0)  # nothing may wait
    assert len(list(exact_rows([lengths[:2], lengths[2:]], 10))) == 3


@pytest.mark.parametrize("way", WAYS)
def test_the_same_lengths_give_the_same_rows(way: Way) -> None:
    lengths = lengths_like("chat", 3_000)
    assert list(way(windows(lengths), 512)) == list(way(windows(lengths), 512))


@pytest.mark.parametrize("way", WAYS)
def test_neighbours_of_one_length_part_ways(way: Way) -> None:
    """A file sorted by class must not become rows of one class."""
    lengths = np.full(1_000, 32, dtype=np.int64)
    rows = list(way(windows(lengths), 128))
    classes = [{n // 250 for n in row} for row in rows]
    assert sum(len(found) > 1 for found in classes) > 0.9 * len(rows)


@pytest.mark.parametrize("way", WAYS)
def test_a_row_of_one_and_no_example_at_all(way: Way) -> None:
    assert list(way(windows(np.array([512])), 512)) == [[0]]
    assert list(way(windows(np.zeros(0, dtype=np.int64)), 512)) == []
    draw = random.Random(3)
    for _ in range(50):
        lengths = np.array([draw.randint(1, 9) for _ in range(draw.randint(1, 40))])
        rows = list(way(windows(lengths), 9))
        assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
        assert all(lengths[row].sum() <= 9 for row in rows)
