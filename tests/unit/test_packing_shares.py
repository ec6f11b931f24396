"""How much of a step is text: the arithmetic of benchmarks/packing.py, and its promise."""

from __future__ import annotations

from itertools import repeat

import numpy as np
import pytest

from benchmarks import packing
from benchmarks.finetune_tasks import _name_tags
from trainer.data.order import Indices


def _lengths(count: int) -> Indices:
    """As short instructions have them: lognormal, median 60."""
    drawn = np.random.default_rng(3).lognormal(np.log(60), 0.7, count)
    return np.clip(drawn, 4, 512).astype(np.int64)


@pytest.mark.parametrize("world", packing.WORLDS)
def test_packed_rows_leave_less_than_half_a_percent_empty(world: int) -> None:
    rows = packing.packed(_lengths(20_000), 512)
    assert sum(map(sum, rows)) == _lengths(20_000).sum()
    assert max(map(sum, rows)) <= 512
    share = packing.useful(packing.ours(rows, 512, world=world, micro=2), world=world)
    assert share >= packing.PROMISE


def test_rows_that_are_half_full_are_seen() -> None:
    work = packing.ours([[256], [512]] * 40, 512, world=8, micro=1)
    assert packing.useful(work, world=8) == pytest.approx(0.75, abs=0.02)
    narrow = packing.ours([[256]] * 8, 512, world=8, micro=1)
    assert packing.useful(narrow, world=8) == 1.0  # a row is as long as its batch's longest


def test_padding_is_that_of_the_busiest_rank() -> None:
    lengths = np.array([10] * 8 + [20] + [10] * 7, dtype=np.int64)
    work = packing.padded(lengths, repeat(np.arange(16)), world=2)
    assert work[0].tolist() == [170] * 60
    assert work[1].tolist() == [8 * 20] * 60
    assert packing.useful(work, world=2) == pytest.approx(170 / 320)


def test_flattened_rows_wait_for_the_fullest_rank_alone() -> None:
    work = packing.flattened([[5, 3], [4]], world=2, micro=1)
    assert packing.useful(work, world=2) == pytest.approx(12 / 16)


def test_examples_cut_in_two_are_counted() -> None:
    lengths = np.array([5, 5, 5, 3], dtype=np.int64)  # of rows of 8, the second and the last
    assert packing._in_two(lengths, 8, "wrapped") == 2
    assert packing._in_two(lengths, 4, "bfd_split") == 3
    assert packing._in_two(lengths, 4, "bfd") == 0


def test_names_are_runs_of_capitalised_words_within_a_sentence() -> None:
    words = ["The", "old", "John", "Smith", "saw", "Rome", ",", "USA"]
    assert _name_tags(words) == ["O", "O", "B-NAME", "I-NAME", "O", "B-NAME", "O", "O"]
