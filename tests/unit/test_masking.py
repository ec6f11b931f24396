"""Which tokens are hidden: exact rates, whole words, spans, the same for the same row and step."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from trainer.batch import IGNORED
from trainer.objectives.masking import Ids, Masking, masked_row, masked_rows, ordinary_ids

VOCAB, MASK, SPECIAL = 50, 4, (0, 1, 2, 3, 4)
Unit = Literal["token", "word", "span"]


def make_row(length: int, *, first: int = 0) -> tuple[Ids, np.ndarray, Ids]:
    """Ids 5..49 between specials, and words of 1, 2 and 3 tokens in turn."""
    ids = 5 + (np.arange(length) * 7 + first) % (VOCAB - 5)
    may = np.ones(length, bool)
    may[[0, length // 2, length - 1]] = False
    ids[~may] = 2
    words = np.repeat(np.arange(length), np.arange(length) % 3 + 1)[:length]
    words[~may] = -1
    return ids, may, words


def masking_of(unit: Unit) -> Masking:
    return Masking(mask_id=MASK, ordinary_ids=ordinary_ids(VOCAB, SPECIAL), unit=unit)


@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_rates_are_those_that_were_asked_for(unit: Unit) -> None:
    ids, may, words = make_row(67)
    chosen = masked = kept = 0
    rows = 1000
    for row in range(rows):
        inputs, labels = masked_row(
            ids, may, masking=masking_of(unit), seed=1, step=3, row=row, words_T=words
        )
        hidden = labels != IGNORED
        assert not hidden[~may].any()
        assert (labels[hidden] == ids[hidden]).all()
        assert (inputs[~hidden] == ids[~hidden]).all()
        assert not np.isin(inputs[hidden & (inputs != MASK)], SPECIAL).any()
        chosen += hidden.sum()
        masked += (inputs[hidden] == MASK).sum()
        kept += (inputs[hidden] == ids[hidden]).sum()
    # 64 tokens a row may be masked: 9.6 of them on average. One sigma of the rate is 0.0003.
    assert chosen / (rows * may.sum()) == pytest.approx(0.15, abs=1e-3)
    # A random token is the same one by chance in 1 of 45. One sigma is 0.004 (spans: 0.008).
    assert masked / chosen == pytest.approx(0.8, abs=0.025)
    assert kept / chosen == pytest.approx(0.1 + 0.1 / 45, abs=0.02)


def test_a_row_never_differs_from_its_rate_by_a_whole_token() -> None:
    ids, may, _ = make_row(67)
    counts = {
        int((masked_row(ids, may, masking=masking_of("token"), seed=0, step=s, row=9)[1] > 0).sum())
        for s in range(200)
    }
    assert counts == {9, 10}


def test_another_step_row_or_seed_hides_others_and_the_same_hides_the_same() -> None:
    ids, may, _ = make_row(67)

    def hidden(seed: int, step: int, row: int) -> tuple[bool, ...]:
        labels = masked_row(ids, may, masking=masking_of("token"), seed=seed, step=step, row=row)[1]
        return tuple(labels != IGNORED)

    assert hidden(1, 2, 3) == hidden(1, 2, 3)
    assert len({hidden(1, 2, 3), hidden(2, 2, 3), hidden(1, 3, 3), hidden(1, 2, 4)}) == 4


def test_the_draw_is_the_one_of_every_machine() -> None:
    """Recorded 2026-11-22 with NumPy 2.4: a change would hide other tokens after a resume."""
    ids, may, words = make_row(40)
    found = {
        unit: np.flatnonzero(
            masked_row(ids, may, masking=masking_of(unit), seed=7, step=8, row=9, words_T=words)[1]
            != IGNORED
        ).tolist()
        for unit in ("token", "word", "span")
    }
    assert found == RECORDED


@pytest.mark.parametrize("unit", ["word", "span"])
def test_a_word_is_hidden_whole_or_not_at_all(unit: Unit) -> None:
    ids, may, words = make_row(67)
    # A special token in the middle of a word's tokens parts it: its halves are words.
    parts = np.cumsum(np.append(True, (words[1:] != words[:-1]) | ~may[1:] | ~may[:-1]))
    for row in range(300):
        labels = masked_row(
            ids, may, masking=masking_of(unit), seed=1, step=1, row=row, words_T=words
        )[1]
        for part in np.unique(parts[may]):
            hidden = labels[(parts == part) & may] != IGNORED
            assert hidden.all() or not hidden.any()


def test_a_span_is_replaced_as_one_and_is_as_long_as_in_the_paper() -> None:
    ids = np.full(20_000, 7)
    may = np.ones(len(ids), bool)
    masking = Masking(mask_id=MASK, ordinary_ids=np.array([8]), rate=0.02, unit="span")
    inputs, labels = masked_row(ids, may, masking=masking, seed=0, step=0, row=0)
    hidden = labels != IGNORED
    edges = np.flatnonzero(np.diff(np.concatenate([[0], hidden, [0]]).astype(int)))
    runs = [inputs[a:b] for a, b in edges.reshape(-1, 2)]
    # Of 105 runs a few are two spans that met.
    assert np.mean([len(set(run.tolist())) == 1 for run in runs]) > 0.93
    # Conditioned on <= 10 a geometric of 0.2 has mean 3.80; one sigma here is 0.25.
    assert np.mean([len(run) for run in runs]) == pytest.approx(3.8, abs=0.6)
    assert max(len(run) for run in runs) > 6


def test_a_span_ends_where_a_special_token_stands() -> None:
    """Every second token is special: two hidden neighbours are chance, 1 in 50."""
    ids, may = np.full(10_000, 7), np.arange(10_000) % 2 == 0
    masking = Masking(mask_id=MASK, ordinary_ids=np.array([8]), rate=0.02, unit="span")
    hidden = masked_row(ids, may, masking=masking, seed=0, step=0, row=0)[1][may] != IGNORED
    assert hidden.sum() == 100
    assert (hidden[1:] & hidden[:-1]).sum() < 15


def test_a_row_without_ordinary_tokens_is_left_alone() -> None:
    ids, may = np.array([2, 2, 2]), np.zeros(3, bool)
    for unit in ("token", "word", "span"):
        inputs, labels = masked_row(ids, may, masking=masking_of(unit), seed=0, step=0, row=0)
        assert inputs.tolist() == [2, 2, 2]
        assert labels.tolist() == [IGNORED] * 3


def test_a_micro_batch_is_its_rows_wherever_it_is_cut() -> None:
    made = [make_row(33, first=n) for n in range(4)]
    ids, may = (torch.from_numpy(np.stack([row[k] for row in made])) for k in (0, 1))
    settings = {"masking": masking_of("token"), "seed": 5, "step": 6}
    whole = masked_rows(ids, may, rows=[40, 41, 42], **settings)
    halves = [
        masked_rows(ids[:2], may[:2], rows=[40, 41], **settings),
        masked_rows(ids[2:], may[2:], rows=[42], **settings),
    ]
    for k in (0, 1):
        assert torch.equal(whole[k], torch.cat([half[k] for half in halves]))
    assert torch.equal(whole[0][3], ids[3])  # no sample stands behind the batch's fourth row
    assert (whole[1][3] == IGNORED).all()


RECORDED = {
    "token": [3, 4, 14, 18, 30, 34],
    "word": [9, 10, 11, 19, 24, 36],
    "span": [9, 10, 11, 12, 13, 14],
}
