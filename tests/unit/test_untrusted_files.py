"""Model folders, tokenizers and token stores of an enemy: one sentence, no code, no memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.capacity.folder import shape_of_folder, vocab_size_of_tokenizer
from trainer.data.tokenizer import TextTokenizer
from trainer.errors import DataError, ModelError
from trainer.models.weights import SafetensorsFolder
from trainer.records.json_file import read_untrusted_json
from trainer.records.token_store import FORMAT, MANIFEST, read_manifest

_DEEP = "[" * 200_000
_CONFIG = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_STORE: dict[str, Any] = {
    "format": FORMAT,
    "source": "files",
    "dtype": "uint16",
    "vocab_size": 300,
    "end_of_text_id": 0,
    "tokenizer_digest": "",
    "preparation_key": "",
    "code_version": 1,
    "source_bytes": 1,
    "skipped_documents": 0,
    "unigram_entropy_nats": 1.0,
}
_SHARD = {
    "name": "train-00000",
    "split": "train",
    "num_tokens": 5,
    "num_documents": 1,
    "tokens_crc": "0",
    "documents_crc": "0",
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": -2},
        {"hidden_size": 2**62},
        {"vocab_size": 0},
        {"num_attention_heads": 0},
        {"hidden_size": "wide"},
        {"hidden_size": [32]},
        {"hidden_size": None},
        {"hidden_size": 1e400},
        {"model_type": {"a": 1}},
    ],
    ids=str,
)
def test_a_shape_beyond_any_model_is_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG))
    assert shape_of_folder(tmp_path, needs_weights=False).num_hidden_layers == 2
    (tmp_path / "config.json").write_text(json.dumps(_CONFIG | wrong))
    with pytest.raises(ModelError):
        shape_of_folder(tmp_path, needs_weights=False)


@pytest.mark.parametrize("content", [_DEEP, "{}" * 2, "\0", '{"a": 1, "a": 2}', "\ufeff{"])
def test_json_that_is_none(content: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r".+"):
        read_untrusted_json(path)


def test_json_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(" " * 1001)
    with pytest.raises(ValueError, match="larger than 1,000 bytes"):
        read_untrusted_json(path, limit_bytes=1000)


def test_brackets_without_end_are_a_sentence_everywhere(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(_DEEP)
    (tmp_path / "model.safetensors.index.json").write_text(_DEEP)
    (tmp_path / MANIFEST).write_text(_DEEP)
    (tmp_path / "tokenizer.json").write_text(_DEEP)
    doors: list[tuple[Callable[[], object], type[Exception]]] = [
        (lambda: shape_of_folder(tmp_path, needs_weights=False), ModelError),
        (lambda: SafetensorsFolder(tmp_path, []), ModelError),
        (lambda: read_manifest(tmp_path), DataError),
        (lambda: TextTokenizer.open(tmp_path / "tokenizer.json"), DataError),
    ]
    for door, kind in doors:
        with pytest.raises(kind) as refused:
            door()
        assert "\n" not in str(refused.value)
    assert vocab_size_of_tokenizer(tmp_path) is None
    (tmp_path / "model.safetensors.index.json").unlink()
    header = _DEEP.encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(ModelError, match="is no safetensors file"):
        SafetensorsFolder(tmp_path, [])


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 1 << 60]},
        {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]},
        {"dtype": "F32", "shape": [1 << 62], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]},
        {"dtype": "OBJ", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": "x", "data_offsets": [0, 8]},
        {"shape": [2]},
        7,
    ],
    ids=str,
)
def test_a_weight_that_lies(entry: Any, tmp_path: Path) -> None:
    def write(value: Any) -> None:
        header = json.dumps({"w": value}).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(8)
        (tmp_path / "model.safetensors").write_bytes(content)

    write({"dtype": "F32", "shape": [2], "data_offsets": [0, 8]})
    SafetensorsFolder(tmp_path, [("w", (2,))])
    write(entry)
    with pytest.raises(ModelError):
        SafetensorsFolder(tmp_path, [("w", (2,))])


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "..", "", "a/b", 7])
def test_an_index_that_leads_elsewhere(name: object, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": name}}))
    with pytest.raises(ModelError, match="not a file of its own folder"):
        SafetensorsFolder(tmp_path, [("w", (2,))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"shards": [_SHARD | {"name": "../../x"}]},
        {"shards": [_SHARD | {"name": "/etc/passwd"}]},
        {"shards": [_SHARD | {"name": 7}]},
        {"shards": [_SHARD | {"split": "held_out"}]},
        {"shards": [_SHARD | {"num_tokens": -1}]},
        {"shards": [_SHARD | {"num_tokens": 2**80}]},
        {"shards": [_SHARD | {"num_documents": 1.5}]},
        {"shards": [_SHARD, _SHARD]},
        {"shards": [_SHARD | {"more": 1}]},
        {"shards": [7]},
        {"shards": 7},
        {"dtype": "object"},
        {"dtype": ["uint16"]},
        {"vocab_size": -1},
        {"end_of_text_id": "0"},
        {"more": 1},
    ],
    ids=str,
)
def test_a_store_that_lies(wrong: dict[str, Any], tmp_path: Path) -> None:
    good = _STORE | {"shards": [_SHARD]}
    (tmp_path / MANIFEST).write_text(json.dumps(good))
    assert read_manifest(tmp_path).num_tokens("train") == 5
    (tmp_path / MANIFEST).write_text(json.dumps(good | wrong))
    with pytest.raises(DataError, match="is damaged"):
        read_manifest(tmp_path)


def test_a_store_that_is_a_list(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("[1]")
    with pytest.raises(DataError, match="is damaged"):
        read_manifest(tmp_path)
