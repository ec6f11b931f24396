"""A token store is whole or refused, by the name of the file and what to do."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.stores import END, counting_documents, make_store
from trainer.data.store import TokenStore
from trainer.data.store_writer import StoreWriter
from trainer.errors import DataError
from trainer.records.token_store import MANIFEST

_DOCUMENTS = counting_documents([9, 4, 12, 1, 7, 20])


def test_documents_come_back_as_they_went_in(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", _DOCUMENTS, held_out=[[7, 8]], shard_tokens=15)
    assert store.train.num_shards > 2
    assert store.train.num_documents == len(_DOCUMENTS)
    for number, document in enumerate(_DOCUMENTS):
        assert store.train.document_tokens(number).tolist() == [*document, END]
    assert store.held_out.document_tokens(0).tolist() == [7, 8, END]
    assert store.train.document_number(0) == 0
    assert store.train.document_number(9) == 0  # its end of text
    assert store.train.document_number(10) == 1
    assert store.train.document_number(store.train.num_tokens - 1) == len(_DOCUMENTS) - 1
    store.verify()


def test_shards_hold_whole_documents_and_close_when_full(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", _DOCUMENTS, shard_tokens=15)
    sizes = [s.num_tokens for s in store.manifest.shards]
    assert sizes == [15, 15, 29]  # 10 + 5, 13 + 2, 8 + 21


def test_files_are_private_and_nothing_is_left_over(tmp_path: Path) -> None:
    make_store(tmp_path / "s", _DOCUMENTS)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o700
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "s").iterdir()} == {0o600}
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == [
        MANIFEST,
        "train-00000.documents",
        "train-00000.tokens",
    ]


def test_entropy_is_that_of_the_tokens_to_train_on(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [[1, 1, 1], [2, 2, 2]], held_out=[[5] * 50])
    shares = [3 / 8, 3 / 8, 2 / 8]
    expected = -sum(p * math.log(p) for p in shares)
    assert store.manifest.unigram_entropy_nats == pytest.approx(expected)


def test_a_missing_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", _DOCUMENTS, shard_tokens=15)
    (store.path / "train-00001.tokens").unlink()
    with pytest.raises(
        DataError, match=r"train-00001\.tokens is missing; delete the folder .*: the next start"
    ):
        TokenStore.open(store.path)


def test_a_short_shard_is_named_with_both_sizes(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", _DOCUMENTS)
    path = store.path / "train-00000.tokens"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="has 116 bytes instead of 118"):
        TokenStore.open(store.path)


@pytest.mark.parametrize("name", ["train-00000.tokens", "train-00000.documents"])
def test_a_flipped_byte_is_found_before_the_first_row(tmp_path: Path, name: str) -> None:
    path = make_store(tmp_path / "s", _DOCUMENTS).path
    raw = bytearray((path / name).read_bytes())
    raw[8] ^= 1
    (path / name).write_bytes(raw)
    store = TokenStore.open(path)
    with pytest.raises(DataError, match=rf"{name} is damaged: its checksum .* delete the folder"):
        store.train.windows(np.array([0]), 4)
    with pytest.raises(DataError, match="is damaged"):
        TokenStore.open(path).verify()
    TokenStore.open(path, verify=False).train.windows(np.array([0]), 4)


def test_a_folder_without_manifest_is_no_store(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s", _DOCUMENTS).path
    (path / MANIFEST).unlink()
    with pytest.raises(DataError, match="is not a complete token store"):
        TokenStore.open(path)


def test_an_interrupted_store_goes_on_where_progress_was_recorded(tmp_path: Path) -> None:
    whole = make_store(tmp_path / "whole", _DOCUMENTS, held_out=[[3], [4]], shard_tokens=15)
    arguments = {"key": "k", "dtype": np.uint16, "shard_tokens": 15}
    first = StoreWriter(tmp_path / "cut", **arguments)  # type: ignore[arg-type]
    first.resume()
    _add(first, _DOCUMENTS[:3])
    _add(first, [[3]], split="held_out")
    first.record_progress(next_document=4, source_bytes=100)
    _add(first, [[999] * 40])  # what a killed process wrote after its last record
    _add(first, [[998]], split="held_out")
    first.close()

    second = StoreWriter(tmp_path / "cut", **arguments)  # type: ignore[arg-type]
    second.resume()
    assert (second.next_document, second.source_bytes) == (4, 100)
    _add(second, _DOCUMENTS[3:])
    _add(second, [[4]], split="held_out")
    assert second.finish() == whole.manifest.shards
    assert second.unigram_entropy() == whole.manifest.unigram_entropy_nats
    second.close()
    for shard in whole.manifest.shards:
        for kind in ("tokens", "documents"):
            name = f"{shard.name}.{kind}"
            assert (second.incoming / name).read_bytes() == (whole.path / name).read_bytes()


def test_leftovers_of_other_settings_are_thrown_away(tmp_path: Path) -> None:
    first = StoreWriter(tmp_path / "s", key="old", dtype=np.uint16, shard_tokens=15)
    first.resume()
    _add(first, _DOCUMENTS)
    first.record_progress(next_document=6, source_bytes=1)
    first.close()
    second = StoreWriter(tmp_path / "s", key="new", dtype=np.uint16, shard_tokens=15)
    second.resume()
    assert second.next_document == 0
    assert list(second.incoming.iterdir()) == []


def _add(writer: StoreWriter, documents: list[list[int]], split: str = "train") -> None:
    closed = [np.array([*d, END], dtype=np.uint16) for d in documents]
    lengths = np.array([len(d) for d in closed], dtype=np.int64)
    writer.add(split, tokens=np.concatenate(closed), lengths=lengths)  # type: ignore[arg-type]
