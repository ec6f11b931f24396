"""Writes a (sharded) safetensors folder by ranges: no process ever holds the whole model.

Values come from a FragmentSource (a checkpoint), a few million elements at a time, are cast and
appended; peak memory is one piece whatever the model's size.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch

from trainer.engine.base import FragmentSource
from trainer.records.fragment import MASTER, Fragment
from trainer.records.json_file import write_json

PIECE_ELEMENTS = 4 * 2**20
INDEX = "model.safetensors.index.json"
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the folder: its name in the file and the logical tensor it is read from."""

    name: str
    shape: tuple[int, ...]
    source_name: str

    @property
    def elements(self) -> int:
        return prod(self.shape)


def write_weights(
    folder: Path,
    tensors: Sequence[TensorSpec],
    source: FragmentSource,
    *,
    dtype: torch.dtype,
    max_shard_bytes: int,
) -> list[Path]:
    """Write `model*.safetensors` (and the index when there are several); returns the files.

    A tensor larger than `max_shard_bytes` gets a file of its own. Mode 0600.
    """
    shards = list(_shards(tensors, dtype.itemsize, max_shard_bytes))
    names = [_file_name(i, len(shards)) for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_file(folder / name, shard, source, dtype=dtype)
    if len(shards) > 1:
        total = sum(t.elements for t in tensors) * dtype.itemsize
        placed = {t.name: n for n, shard in zip(names, shards, strict=True) for t in shard}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": placed})
    return [folder / n for n in names]


def _shards(
    tensors: Sequence[TensorSpec], itemsize: int, max_bytes: int
) -> Iterator[list[TensorSpec]]:
    shard: list[TensorSpec] = []
    held = 0
    for tensor in tensors:
        size = tensor.elements * itemsize
        if shard and held + size > max_bytes:
            yield shard
            shard, held = [], 0
        shard.append(tensor)
        held += size
    if shard:
        yield shard


def _file_name(index: int, count: int) -> str:
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def _write_file(
    path: Path, tensors: Sequence[TensorSpec], source: FragmentSource, *, dtype: torch.dtype
) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.elements * dtype.itemsize
        header[tensor.name] = {
            "dtype": _CODES[dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format wants the data aligned to 8 bytes
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for piece in _pieces(tensor, source, dtype):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _pieces(tensor: TensorSpec, source: FragmentSource, dtype: torch.dtype) -> Iterator[bytes]:
    for start in range(0, tensor.elements, PIECE_ELEMENTS):
        stop = min(start + PIECE_ELEMENTS, tensor.elements)
        values = torch.empty(stop - start, dtype=torch.float32)
        source.read(Fragment(tensor.source_name, MASTER, tensor.shape, start, stop), values)
        yield values.to(dtype).view(torch.uint8).numpy().tobytes()
