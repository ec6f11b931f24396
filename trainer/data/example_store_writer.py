"""Writes an example store: shards into `<store>.incoming`, then rows, the manifest last, a rename.

A kill loses at most the open shards: each time one is finished, progress.json says how many records
are in and how long every file was at that moment; what is longer is cut.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from trainer.data.encodings.base import PLACES, TEXT
from trainer.data.encodings.example import Example, bits_of
from trainer.data.store_files import (
    PROGRESS,
    create,
    flushed,
    put_in_place,
    reopened,
    space_named,
    write_all,
)
from trainer.errors import DataError
from trainer.records.example_store import (
    Column,
    ExampleManifest,
    ExampleShard,
    StoredFile,
    write_example_manifest,
)
from trainer.records.json_file import read_json, write_json
from trainer.records.token_store import Split

SPLITS: tuple[Split, ...] = ("train", "held_out")
_TOGETHER = 512  # examples that are written at once


@dataclass
class _Growing:
    """One file of the shard that is being written; `elements` counts those of its column."""

    file: IO[bytes]
    size: int = 0
    crc: int = 0
    elements: int = 0

    def append(self, values: npt.NDArray[Any]) -> None:
        raw = values.tobytes()
        write_all(self.file, raw)
        self.size += len(raw)
        self.crc = google_crc32c.extend(self.crc, raw)

    def as_dict(self) -> dict[str, int]:
        return {"size": self.size, "crc": self.crc, "elements": self.elements}


@dataclass
class _OpenShard:
    split: Split
    number: int = 0
    num_examples: int = 0
    num_tokens: int = 0
    files: dict[str, _Growing] = field(default_factory=dict)
    done: list[ExampleShard] = field(default_factory=list)
    waiting: list[Example] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"


class ExampleStoreWriter:
    """Takes examples in order; `next_record` says where to go on after a restart.

    `counts`: whatever the caller counts while it reads; it comes back after a restart.
    """

    def __init__(
        self, final: Path, *, key: str, columns: Sequence[Column], shard_tokens: int
    ) -> None:
        self.final = final
        self.incoming = final.with_name(final.name + ".incoming")
        self.columns = (*columns, PLACES)
        self.next_record = 0
        self.counts: dict[str, Any] = {}
        self._key = f"{key}/{shard_tokens}"
        self._shard_tokens = shard_tokens
        self._shards = {split: _OpenShard(split) for split in SPLITS}

    def resume(self) -> None:
        """Take up an interrupted preparation of the same key, or start with an empty folder."""
        with space_named(self.incoming):
            saved = self._saved()
            if saved is None:
                shutil.rmtree(self.incoming, ignore_errors=True)
                self.incoming.mkdir(mode=0o700)
                return
            self.next_record, self.counts = saved["next_record"], saved["counts"]
            for split in SPLITS:
                self._restore(self._shards[split], saved["splits"][split])
            self._remove_unknown()

    def add(self, split: Split, example: Example, *, file_number: int) -> bool:
        """Append an example; True if a shard was finished, and progress is worth recording."""
        shard = self._shards[split]
        places = np.array([file_number, example.row, bits_of(example)], dtype=np.int64)
        arrays = {**example.arrays, PLACES.name: places}
        if TEXT in self.columns:
            text = json.dumps(example.text, ensure_ascii=False).encode()
            arrays[TEXT.name] = np.frombuffer(text, dtype=np.uint8)
        shard.waiting.append(Example(arrays, example.file, example.row))
        shard.num_examples += 1
        shard.num_tokens += _tokens_of(arrays, self.columns)
        if len(shard.waiting) >= _TOGETHER or shard.num_tokens >= self._shard_tokens:
            self._write(shard)
        if shard.num_tokens < self._shard_tokens:
            return False
        self._finish(shard)
        return True

    def record_progress(self, *, next_record: int, counts: Mapping[str, Any]) -> None:
        """From here a restart goes on. All records before `next_record` have been added."""
        with space_named(self.incoming):
            splits = {split: self._state(shard) for split, shard in self._shards.items()}
            progress = {"key": self._key, "next_record": next_record, "counts": dict(counts)}
            write_json(self.incoming / PROGRESS, progress | {"splits": splits})

    def finish(self) -> tuple[ExampleShard, ...]:
        """Close the last shards of both splits; the shards of the whole store."""
        for shard in self._shards.values():
            if shard.num_examples:
                self._write(shard)
                self._finish(shard)
        return tuple(s for split in SPLITS for s in self._shards[split].done)

    def write_numbers(self, name: str, values: npt.NDArray[Any]) -> StoredFile:
        """A file of uint64 beside the shards, `split.suffix`."""
        with space_named(self.incoming), create(self.incoming / name) as file:
            growing = _Growing(file)
            growing.append(values.astype("<u8"))
            flushed(file)
        return StoredFile(name.partition(".")[2], growing.size, f"{growing.crc:08x}")

    def publish(self, manifest: ExampleManifest) -> None:
        """Make the store real: manifest last, then the rename."""
        with space_named(self.incoming):
            write_example_manifest(self.incoming, manifest)
            put_in_place(self.incoming, self.final)

    def close(self) -> None:
        for shard in self._shards.values():
            for growing in shard.files.values():
                growing.file.close()
            shard.files = {}

    def _write(self, shard: _OpenShard) -> None:
        """What waits, column by column."""
        with space_named(self.incoming):
            if not shard.files:
                shard.files = {n: _Growing(create(self._path(shard, n))) for n in self._names()}
            for column in self.columns:
                growing = shard.files[column.name]
                parts = [e.arrays[column.name] for e in shard.waiting]
                growing.append(_joined(parts, column))
            for ends in dict.fromkeys(e for c in self.columns if (e := c.ends)):
                self._write_ends(shard, ends)
        shard.waiting = []

    def _write_ends(self, shard: _OpenShard, ends: str) -> None:
        column = next(c for c in self.columns if c.ends == ends)
        growing = shard.files[f"{ends}.ends"]
        lengths = [len(e.arrays[column.name]) for e in shard.waiting]
        found = growing.elements + np.cumsum(np.array(lengths, dtype=np.int64))
        growing.append(found.astype("<u8"))
        growing.elements = int(found[-1]) if len(found) else growing.elements

    def _finish(self, shard: _OpenShard) -> None:
        with space_named(self.incoming):
            for growing in shard.files.values():
                flushed(growing.file)
                growing.file.close()
        files = tuple(StoredFile(n, g.size, f"{g.crc:08x}") for n, g in shard.files.items())
        shard.done.append(
            ExampleShard(shard.name, shard.split, shard.num_examples, shard.num_tokens, files)
        )
        shard.number += 1
        shard.num_examples = shard.num_tokens = 0
        shard.files = {}

    def _state(self, shard: _OpenShard) -> dict[str, Any]:
        if shard.waiting:
            self._write(shard)
        for growing in shard.files.values():
            flushed(growing.file)
        return {
            "number": shard.number,
            "num_examples": shard.num_examples,
            "num_tokens": shard.num_tokens,
            "files": {name: growing.as_dict() for name, growing in shard.files.items()},
            "done": [asdict(s) for s in shard.done],
        }

    def _saved(self) -> dict[str, Any] | None:
        try:
            saved: dict[str, Any] = read_json(self.incoming / PROGRESS)
        except (FileNotFoundError, ValueError):
            return None
        return saved if saved.get("key") == self._key else None

    def _restore(self, shard: _OpenShard, saved: dict[str, Any]) -> None:
        for name in ("number", "num_examples", "num_tokens"):
            setattr(shard, name, saved[name])
        shard.done = [
            ExampleShard(**s | {"files": tuple(StoredFile(**f) for f in s["files"])})
            for s in saved["done"]
        ]
        shard.files = {
            name: _Growing(reopened(self._path(shard, name), known["size"]), **known)
            for name, known in saved["files"].items()
        }

    def _remove_unknown(self) -> None:
        known = {f"{s.name}." for shard in self._shards.values() for s in shard.done}
        known |= {f"{shard.name}." for shard in self._shards.values() if shard.files}
        for path in self.incoming.iterdir():
            if path.name != PROGRESS and not path.name.startswith(tuple(known)):
                path.unlink()

    def _path(self, shard: _OpenShard, suffix: str) -> Path:
        return self.incoming / f"{shard.name}.{suffix}"

    def _names(self) -> list[str]:
        ends = dict.fromkeys(f"{e}.ends" for c in self.columns if (e := c.ends))
        return [*(column.name for column in self.columns), *ends]


def _tokens_of(arrays: Mapping[str, npt.NDArray[Any]], columns: Sequence[Column]) -> int:
    """Of the axes T and S, one column each."""
    axes = {c.axis: c.name for c in reversed(columns) if c.axis in ("T", "S")}
    return sum(len(arrays[name]) for name in axes.values())


def _joined(parts: Sequence[npt.NDArray[Any]], column: Column) -> npt.NDArray[Any]:
    """Raises: DataError if an encoding gives what its column cannot hold."""
    values = np.concatenate(parts)
    dtype = np.dtype(column.dtype).newbyteorder("<")
    stored = values.astype(dtype)
    if column.dtype != "float32" and not np.array_equal(stored, values):
        raise DataError(f"the encoding gives {column.name} that {column.dtype} does not hold")
    if column.axis == "E" and len(values) != column.width * len(parts):
        raise DataError(f"the encoding gives {column.name} of other widths than {column.width}")
    return stored
