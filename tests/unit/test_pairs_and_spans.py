"""Next-sentence pairs, span denoising, prefixes: pure functions of a row's number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from trainer.batch import IGNORED
from trainer.data.sentence_pairs import FOLLOWS, RANDOM, num_pairs, pair_at, pair_row
from trainer.errors import DataError
from trainer.objectives.prefix_lm import prefix_length, prefix_lm_labels
from trainer.objectives.span_denoising import SpanDenoising, denoised_row, lengths, longest_raw

DOCUMENTS = np.array([3, 1, 0, 4, 2])
T5 = SpanDenoising(sentinels=range(32099, 31999, -1), end_id=1, final_sentinel=False)


def test_half_of_the_pairs_are_real_and_the_others_cross_documents() -> None:
    assert num_pairs(DOCUMENTS) == 2 + 3 + 1
    pairs = [pair_at(DOCUMENTS, index, seed=3) for index in range(600)]
    assert sum(pair.label == FOLLOWS for pair in pairs) == 300
    for even, odd in zip(pairs[::2], pairs[1::2], strict=True):
        assert {even.label, odd.label} == {FOLLOWS, RANDOM}
    for pair in pairs:
        (d, s), (other, at) = pair.first, pair.second
        assert 0 <= s < DOCUMENTS[d] - 1
        assert 0 <= at < DOCUMENTS[other]
        assert (pair.second == (d, s + 1)) if pair.label == FOLLOWS else other != d
    assert {pair.first for pair in pairs} == {(0, 0), (0, 1), (3, 0), (3, 1), (3, 2), (4, 0)}
    seconds = {pair.second for pair in pairs if pair.label == RANDOM}
    assert len(seconds) == DOCUMENTS.sum()


def test_a_pair_depends_on_its_number_and_the_seed_alone() -> None:
    assert pair_at(DOCUMENTS, 77, seed=3) == pair_at(DOCUMENTS, 77, seed=3)
    labels = [[pair_at(DOCUMENTS, i, seed=seed).label for i in range(40)] for seed in (3, 4)]
    assert labels[0] != labels[1]


@pytest.mark.parametrize(
    ("documents", "said"), [([1, 1], "two sentences or more"), ([5], "needs two documents")]
)
def test_a_corpus_without_pairs_is_refused(documents: list[int], said: str) -> None:
    with pytest.raises(DataError, match=said):
        pair_at(np.array(documents), 0, seed=0)


def test_a_pair_fits_its_row_and_the_longer_sentence_pays() -> None:
    first, second = list(range(10, 20)), list(range(20, 24))
    inputs, segments = pair_row(first, second, start=1, end=2, max_T=12)
    assert inputs.tolist() == [1, *range(10, 15), 2, *range(20, 24), 2]
    assert segments.tolist() == [0] * 7 + [1] * 5
    assert pair_row(second, first, start=1, end=2, max_T=12)[0].tolist() == [
        *(1, *range(20, 24), 2, *range(10, 15), 2)
    ]
    assert len(pair_row(first, first, start=1, end=2, max_T=14)[0]) == 14
    assert len(pair_row(first, second, start=1, end=2, max_T=99)[0]) == 17
    with pytest.raises(DataError, match="5 tokens at least"):
        pair_row(first, second, start=1, end=2, max_T=4)


def test_lengths_are_those_of_t5() -> None:
    assert longest_raw(512, T5) == 568
    assert lengths(568, T5) == (28, 512, 114)
    assert lengths(568, replace(T5, final_sentinel=True)) == (28, 512, 115)
    with pytest.raises(DataError, match="inputs of 3 tokens"):
        longest_raw(2, T5)


@pytest.mark.parametrize("final", [False, True])
def test_inputs_and_targets_together_are_the_row(final: bool) -> None:
    settings = SpanDenoising(sentinels=range(999, 899, -1), end_id=1, final_sentinel=final)
    ids = np.arange(100, 331)
    for row in range(50):
        inputs, targets = denoised_row(ids, settings=settings, seed=0, step=row % 3, row=row)
        spans, len_in, len_out = lengths(len(ids), settings)
        assert (len(inputs), len(targets)) == (len_in, len_out)
        assert inputs[-1] == targets[-1] == 1
        if final:
            assert targets[-2] == 999 - spans
        hidden = np.split(targets[:-1], np.flatnonzero(targets[:-1] > 899)[1:])
        said = {int(span[0]): span[1:].tolist() for span in hidden}
        whole: list[int] = []
        for token in inputs[:-1].tolist():
            whole += said[token] if token > 899 else [token]
        assert whole == ids.tolist()
        assert [t for t in inputs.tolist() if t > 899] == list(range(999, 999 - spans, -1))


def test_spans_are_drawn_by_seed_step_and_row() -> None:
    ids = np.arange(100, 400)

    def made(seed: int, step: int, row: int) -> tuple[int, ...]:
        inputs = denoised_row(ids, settings=T5, seed=seed, step=step, row=row)[0]
        return tuple(inputs.tolist())

    assert made(0, 0, 0) == made(0, 0, 0)
    assert len({made(0, 0, 0), made(1, 0, 0), made(0, 1, 0), made(0, 0, 1)}) == 4


def test_a_row_is_as_often_cut_anywhere_as_elsewhere() -> None:
    """Two spans of noise 6 in a row: (1,5) to (5,1), each a fifth of the time."""
    settings = SpanDenoising(sentinels=range(999, 900, -1), end_id=1, density=0.5)
    ids = np.arange(100, 112)
    counts = np.zeros(6)
    for row in range(2000):
        _, targets = denoised_row(ids, settings=settings, seed=0, step=0, row=row)
        counts[np.flatnonzero(targets == 998)[0] - 1] += 1
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / 2000, 0.2, atol=0.04)  # four sigma


def test_more_spans_than_sentinels_are_refused() -> None:
    few = SpanDenoising(sentinels=[9, 8], end_id=1)
    with pytest.raises(DataError, match="5 spans to hide, but the tokenizer has only 2"):
        denoised_row(np.arange(100), settings=few, seed=0, step=0, row=0)
    with pytest.raises(DataError, match="rows of two tokens"):
        denoised_row(np.arange(1), settings=few, seed=0, step=0, row=0)


def test_the_prefix_is_read_and_the_rest_is_said() -> None:
    labels = torch.tensor([[11, 12, 13, IGNORED, 21, 22, IGNORED]])
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    prefix = torch.tensor([[2, 2, 2, 2, 1, 1, 1]])
    said = prefix_lm_labels(labels, positions, prefix)
    assert said.tolist() == [[IGNORED, 12, 13, IGNORED, 21, 22, IGNORED]]


def test_a_prefix_leaves_something_to_say() -> None:
    drawn = [prefix_length(5, seed=1, step=2, row=row) for row in range(300)]
    assert set(drawn) == {1, 2, 3, 4}
    assert prefix_length(1, seed=0, step=0, row=0) == 1
    assert prefix_length(90, seed=1, step=2, row=3) == prefix_length(90, seed=1, step=2, row=3)
