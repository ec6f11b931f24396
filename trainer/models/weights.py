"""Ranges of a Hugging Face safetensors folder, read straight from its files. Pickle is refused.

The header is parsed here instead of by the library: a range then costs one `pread` of its own
bytes, and a broken file is an error sentence with its name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ModelError
from trainer.records.fragment import MASTER, Fragment
from trainer.records.json_file import read_untrusted_json, untrusted_json

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_MAX_HEADER_BYTES = 100 << 20  # the format's own limit
_PIECE_ELEMENTS = 4 << 20

# Older files of GPT-2 and GPT-NeoX also hold attention masks and rotary tables, and call the head
# differently; transformers makes the former itself and renames the latter.
_NOT_WEIGHTS = (
    ".attn.bias",
    ".attn.masked_bias",
    ".attention.bias",
    ".attention.masked_bias",
    ".rotary_emb.inv_freq",
)
_OLD_NAMES = {"lm_head.weight": "embed_out.weight"}


@dataclass(frozen=True)
class _Tensor:
    """Where one tensor's bytes lie."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


class SafetensorsFolder:
    """A FragmentSource: weights from the folder as fp32, moments 0."""

    def __init__(self, path: Path, layout: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """`layout`: names and whole shapes of the model's tensors (`Engine.layout()`).

        Raises: ModelError if the folder holds no safetensors, if a file is broken, or if tensors
        are missing, have another shape, or are ones that the model has not.
        """
        self._path = path
        found = _tensors(path)
        self._tensors = _matched(path, found, list(layout))

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if the tensor is not of the layout, or the file cannot be read."""
        if fragment.kind != MASTER:
            out.zero_()
            return
        tensor = self._tensors.get(fragment.name)
        if tensor is None:
            raise ModelError(f"{self._path}: no tensor {fragment.name}")
        for start in range(fragment.start, fragment.stop, _PIECE_ELEMENTS):
            stop = min(start + _PIECE_ELEMENTS, fragment.stop)
            out[start - fragment.start : stop - fragment.start].copy_(_piece(tensor, start, stop))


def _piece(tensor: _Tensor, start: int, stop: int) -> torch.Tensor:
    size = tensor.dtype.itemsize
    length = (stop - start) * size
    try:
        descriptor = os.open(tensor.file, os.O_RDONLY)
        try:
            data = os.pread(descriptor, length, tensor.offset + start * size)
        finally:
            os.close(descriptor)
    except OSError as e:
        raise ModelError(f"{tensor.file} cannot be read: {e.strerror}") from e
    if len(data) != length:
        raise ModelError(f"{tensor.file} became shorter while it was read")
    return torch.frombuffer(bytearray(data), dtype=tensor.dtype)


# --- finding tensors ----------------------------------------------------------------------------


def _tensors(path: Path) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    for file in _files(path):
        for name, tensor in _header(file).items():
            if name in found:
                raise ModelError(
                    f"{path}: {name} is in both {found[name].file.name} and {file.name}"
                )
            found[name] = tensor
    return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise ModelError(f"{path} is no folder")
    if (path / _INDEX).is_file():
        return [path / name for name in _indexed(path / _INDEX)]
    if (path / _SINGLE).is_file():
        return [path / _SINGLE]
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"{path} has only pickled weights ({pickles[0]}), which can run code when they are "
            "read; save the model again as safetensors (model.save_pretrained(folder))"
        )
    raise ModelError(f"{path} holds no weights: neither {_SINGLE} nor {_INDEX}")


def _indexed(index: Path) -> list[str]:
    try:
        names = set(read_untrusted_json(index)["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ModelError(f"{index} is no index of safetensors files: {e!r}") from e
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or name in ("", ".", ".."):
            raise ModelError(f"{index} names {name!r}, which is not a file of its own folder")
        if not (index.parent / name).is_file():
            raise ModelError(f"{index} names {name}, which is missing")
    return sorted(names)


def _header(file: Path) -> dict[str, _Tensor]:
    try:
        with file.open("rb") as f:
            size = os.fstat(f.fileno()).st_size
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
                raise ModelError(f"{file} is no safetensors file, or was cut short")
            entries: Any = untrusted_json(f.read(length))
    except (OSError, ValueError) as e:
        raise ModelError(f"{file} is no safetensors file: {e}") from e
    if not isinstance(entries, dict):
        raise ModelError(f"{file} is no safetensors file: its header is not a table")
    entries.pop("__metadata__", None)
    return {n: _entry(file, n, e, data=8 + length, size=size) for n, e in entries.items()}


def _entry(file: Path, name: str, entry: Any, *, data: int, size: int) -> _Tensor:
    try:
        dtype_name, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        start, stop = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as e:
        raise ModelError(f"{file}: the header's entry of {name} is broken") from e
    dtype = _DTYPES.get(dtype_name)
    if dtype is None:
        raise ModelError(
            f"{file}: {name} is stored as {dtype_name}; only {', '.join(_DTYPES)} can be trained on"
        )
    whole = 0 <= start <= stop and data + stop <= size
    if not whole or stop - start != math.prod(shape) * dtype.itemsize:
        raise ModelError(f"{file}: the bytes of {name} are not all there; the file was cut short")
    return _Tensor(file, dtype, shape, data + start)


# --- matching with the model --------------------------------------------------------------------


def _matched(
    path: Path, found: Mapping[str, _Tensor], layout: list[tuple[str, tuple[int, ...]]]
) -> dict[str, _Tensor]:
    matched: dict[str, _Tensor] = {}
    used: set[str] = set()
    wrong: list[str] = []
    missing: list[str] = []
    for name, shape in layout:
        stored = next((n for n in _stored_names(name) if n in found), None)
        if stored is None:
            missing.append(name)
            continue
        used.add(stored)
        matched[name] = found[stored]
        if found[stored].shape != tuple(shape):
            wrong.append(f"{name} is {_size(found[stored].shape)}, not {_size(shape)}")
    extra = [n for n in found if n not in used and not _known_extra(n, matched)]
    said = [_said("lacks", missing), _said("has tensors of another shape:", wrong)]
    said.append(_said("has tensors that the model has not:", extra))
    if any(said):
        raise ModelError(f"{path} does not fit the model: it {'; it '.join(filter(None, said))}")
    return matched


def _stored_names(name: str) -> tuple[str, ...]:
    """A model's own name, an older one, and the one of a folder saved without its head."""
    return (name, _OLD_NAMES.get(name, name), name.partition(".")[2])


def _known_extra(name: str, matched: Mapping[str, _Tensor]) -> bool:
    """Not a weight, or a second copy of a tied head."""
    if name.endswith(_NOT_WEIGHTS):
        return True
    return name in ("lm_head.weight", *_OLD_NAMES.values()) and "lm_head.weight" not in matched


def _said(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}" if names else ""


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) or "a single number"
