"""Rows hold every prediction once, none across documents, and positions per document."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.stores import END, counting_documents, make_store
from trainer.batch import IGNORED
from trainer.data.packing import PackedRows, PieceRows, Rows, row_source

_LENGTHS = [5, 0, 1, 17, 3, 30, 2, 8, 8, 8, 1, 40]


@pytest.mark.parametrize("shard_tokens", [1_000_000, 20, 7, 1])
@pytest.mark.parametrize("length", [2, 4, 7, 16])
def test_packed_rows_are_the_split_cut_at_every_t_tokens(
    tmp_path: Path, length: int, shard_tokens: int
) -> None:
    documents = counting_documents(_LENGTHS)
    split = make_store(tmp_path / "s", documents, shard_tokens=shard_tokens).train
    flat = [t for d in documents for t in [*d, END]]
    rows = PackedRows(split, sequence_length=length)
    assert rows.num_rows == (len(flat) - 1) // length
    found = rows.rows(np.arange(rows.num_rows)[::-1].copy())
    _assert_packed(found, flat, index=list(range(rows.num_rows))[::-1], length=length)


def _assert_packed(found: Rows, flat: list[int], *, index: list[int], length: int) -> None:
    """Against a plain loop over the tokens."""
    document_of, document = [], 0
    for token in flat:
        document_of.append(document)
        document += token == END
    for r, row in enumerate(index):
        position, terms = 0, 0
        for c in range(length):
            at = row * length + c
            if c and document_of[at] != document_of[at - 1]:
                position = 0
            assert found.inputs_RT[r, c] == flat[at]
            assert found.positions_RT[r, c] == position
            same = document_of[at] == document_of[at + 1]
            assert found.labels_RT[r, c] == (flat[at + 1] if same else IGNORED)
            position += 1
            terms += same
        assert found.terms_R[r] == terms
        assert found.tokens_R[r] == length


@pytest.mark.parametrize("shard_tokens", [1_000_000, 20, 1])
@pytest.mark.parametrize("length", [2, 4, 7, 16, 64, 500])
def test_pieces_hold_every_prediction_of_every_document_once(
    tmp_path: Path, length: int, shard_tokens: int
) -> None:
    documents = counting_documents(_LENGTHS)
    store = make_store(tmp_path / "s", documents, shard_tokens=shard_tokens)
    rows = PieceRows(store.train, sequence_length=length, padding_id=END)
    found = rows.rows(np.arange(rows.num_rows))
    pairs = [
        (int(i), int(label))
        for i, label in zip(found.inputs_RT.ravel(), found.labels_RT.ravel(), strict=True)
        if label != IGNORED
    ]
    expected = [(a, b) for d in documents for a, b in zip([*d, END], [*d, END][1:], strict=False)]
    assert pairs == expected
    assert (found.positions_RT == np.arange(length)).all()
    for r in range(rows.num_rows):
        terms = int(found.terms_R[r])
        assert 0 < terms <= length
        assert (found.labels_RT[r, terms:] == IGNORED).all()
        assert (found.inputs_RT[r, terms:] == END).all()
    assert (found.tokens_R == found.terms_R).all()


def test_pieces_may_be_asked_for_in_any_order(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", counting_documents(_LENGTHS), shard_tokens=20)
    rows = PieceRows(store.train, sequence_length=4, padding_id=END)
    whole = rows.rows(np.arange(rows.num_rows))
    chosen = np.array([rows.num_rows - 1, 0, 3, 3])
    assert (rows.rows(chosen).inputs_RT == whole.inputs_RT[chosen]).all()


def test_a_split_too_small_for_a_row_has_none(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [[1, 2]])
    for packing in (True, False):
        for split in (store.held_out, store.train):
            rows = row_source(split, sequence_length=64, packing=packing, padding_id=END)
            assert rows.num_rows == (0 if packing or split is store.held_out else 1)


def test_tokens_above_65535_survive(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [[69_999, 65_536, 3]], wide=True)
    rows = PackedRows(store.train, sequence_length=3).rows(np.array([0]))
    assert rows.inputs_RT.tolist() == [[69_999, 65_536, 3]]
    assert rows.labels_RT.tolist() == [[65_536, 3, END]]
