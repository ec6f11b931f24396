"""The manifest of an example store: what was prepared, from what, and how rows are made of it.

    <store>/manifest.json             written last: its presence means "complete"
    <store>/tokenizer.json            the tokenizer, and the files beside it that it needs
    <store>/train-00000.inputs        one column of one shard: numbers, little-endian, no header
    <store>/train-00000.T.ends        uint64 end of each example, in elements from the shard's start
    <store>/train.rows                uint64 numbers of examples in the order of packed rows
    <store>/train.row_ends            uint64 end of each row, in entries of `rows`
    <store>/held_out-00000.*          the examples for evaluation

Columns of one axis share their ends. An axis is a letter of the model's shapes: T (its positions),
S (the positions of a decoder); E columns have `width` elements an example and no ends; an aside
(kept for scores, never given to a model) has ends of its own, under the column's name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.errors import DataError
from trainer.records.json_file import read_untrusted_json, write_json
from trainer.records.token_store import MANIFEST, Split

FORMAT = 1
KIND = "examples"
DTYPES = {"uint8": 1, "uint16": 2, "uint32": 4, "int32": 4, "int64": 8, "float32": 4}
Axis = Literal["T", "S", "E", "aside"]
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_MOST = 2**53


@dataclass(frozen=True)
class Column:
    """`fill`: what stands where a row has no example. `width`: elements an example; axis E only."""

    name: str
    dtype: str
    axis: Axis
    fill: float = 0
    width: int = 1

    @property
    def ends(self) -> str | None:
        """The name of the file of ends; columns of one axis share it."""
        if self.axis == "E":
            return None
        return self.name if self.axis == "aside" else self.axis


@dataclass(frozen=True)
class StoredFile:
    """`suffix`: what follows the shard's name. `crc`: crc32c, as hex."""

    suffix: str
    size: int  # bytes
    crc: str


@dataclass(frozen=True)
class ExampleShard:
    name: str
    split: Split
    num_examples: int
    num_tokens: int  # elements of the axes T and S together
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class PackedRows:
    """The index of one split's rows; `num_rows` 0 and no files where the split is empty."""

    split: Split
    num_rows: int
    files: tuple[StoredFile, ...]


@dataclass(frozen=True)
class ExampleManifest:
    """`rows` is empty where every example has a row of its own."""

    source: str  # the name under data.sources
    task: str  # kind of the task it was encoded for
    tokenizer_digest: str  # sha256 of tokenizer.json
    vocab_size: int  # ids are below this
    padding_id: int
    preparation_key: str
    labels: tuple[str, ...]  # in the order of the model's outputs; empty where there are none
    terms: str  # "examples", or the column whose entries are terms of the loss unless IGNORED
    columns: tuple[Column, ...]
    row_tokens: int  # positions of a row, at most
    skipped_records: int
    cut_examples: int  # longer than a row
    files: tuple[str, ...]  # where examples came from; the column `places` counts them from 0
    label_counts: tuple[int, ...]  # examples to train on, of each label
    shards: tuple[ExampleShard, ...]
    rows: tuple[PackedRows, ...]

    def num_examples(self, split: Split) -> int:
        return sum(s.num_examples for s in self.shards if s.split == split)

    def num_tokens(self, split: Split) -> int:
        return sum(s.num_tokens for s in self.shards if s.split == split)

    def num_rows(self, split: Split) -> int:
        if not self.rows:
            return self.num_examples(split)
        return sum(r.num_rows for r in self.rows if r.split == split)

    @property
    def content_digest(self) -> str:
        """Of what is in it: the same after another preparation that came to the same bytes."""
        said = {k: v for k, v in asdict(self).items() if k not in ("preparation_key", "files")}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def stored_files(self) -> Iterator[tuple[str, StoredFile]]:
        """(name in the folder, record) of every file but the manifest and the tokenizer's."""
        for shard in self.shards:
            for file in shard.files:
                yield f"{shard.name}.{file.suffix}", file
        for rows in self.rows:
            for file in rows.files:
                yield f"{rows.split}.{file.suffix}", file


def write_example_manifest(folder: Path, manifest: ExampleManifest) -> None:
    write_json(folder / MANIFEST, {"format": FORMAT, "kind": KIND, **asdict(manifest)})


def read_example_manifest(folder: Path) -> ExampleManifest:
    """Raises: DataError if there is no readable manifest of a known format."""
    path = folder / MANIFEST
    try:
        value: dict[str, Any] = read_untrusted_json(path)
    except FileNotFoundError:
        raise DataError(f"{folder} is not a complete example store: no {MANIFEST}") from None
    except ValueError as e:
        raise DataError(f"{path} is damaged ({e}); prepare the data again") from e
    try:
        found = (value.pop("kind", None), value.pop("format", None))
        if found != (KIND, FORMAT):
            raise DataError(
                f"{path} is of kind {found[0]} and format {found[1]}; this version reads "
                f"{KIND} of format {FORMAT}; prepare it again"
            )
        manifest = ExampleManifest(
            columns=tuple(Column(**c) for c in value.pop("columns")),
            shards=tuple(_shard(s) for s in value.pop("shards")),
            rows=tuple(PackedRows(**r | {"files": _files(r["files"])}) for r in value.pop("rows")),
            labels=tuple(value.pop("labels")),
            label_counts=tuple(value.pop("label_counts")),
            files=tuple(value.pop("files")),
            **value,
        )
        _check(manifest)
    except (TypeError, ValueError, KeyError, AttributeError) as e:
        raise DataError(f"{path} is damaged ({e}); prepare the data again") from e
    return manifest


def _shard(value: dict[str, Any]) -> ExampleShard:
    return ExampleShard(**value | {"files": _files(value["files"])})


def _files(values: list[dict[str, Any]]) -> tuple[StoredFile, ...]:
    return tuple(StoredFile(**one) for one in values)


def _check(manifest: ExampleManifest) -> None:
    """Raises: ValueError: nothing is opened or made by names and sizes of anybody's."""
    _check_columns(manifest)
    names = [column.name for column in manifest.columns]
    known = {f"{e}.ends" for c in manifest.columns if (e := c.ends)} | set(names)
    stems = [shard.name for shard in manifest.shards]
    for shard in manifest.shards:
        number = shard.name.removeprefix(f"{shard.split}-")
        if shard.split not in ("train", "held_out") or not number.isdigit():
            raise ValueError(f"a shard is named {shard.name[:80]!r}")
        if stems.count(shard.name) > 1 or {f.suffix for f in shard.files} != known:
            raise ValueError(f"{shard.name} stands in it twice, or lacks a file")
        _count(shard.num_examples, f"examples of {shard.name}")
        _count(shard.num_tokens, f"tokens of {shard.name}")
    for rows in manifest.rows:
        if rows.split not in ("train", "held_out"):
            raise ValueError(f"rows of {rows.split[:80]!r}")
        _count(rows.num_rows, "rows")
        if {f.suffix for f in rows.files} - {"rows", "row_ends"}:
            raise ValueError("a file of rows has another name")
    for name, file in manifest.stored_files():
        _count(file.size, f"bytes of {name}")


def _check_columns(manifest: ExampleManifest) -> None:
    names = [column.name for column in manifest.columns]
    for column in manifest.columns:
        if not _NAME.fullmatch(column.name) or names.count(column.name) > 1:
            raise ValueError(f"a column is named {column.name[:80]!r}")
        if column.dtype not in DTYPES or column.axis not in ("T", "S", "E", "aside"):
            raise ValueError(f"{column.name} is {column.dtype[:80]!r} along {column.axis[:80]!r}")
        _count(column.width, f"the width of {column.name}")


def _count(value: Any, what: str) -> None:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise ValueError(f"{what} are {str(value)[:80]}")
