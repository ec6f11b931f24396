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
    "embeddings.position_ids",
    "embeddings.token_type_ids",
    "final_logits_bias",  # of BART: zeros, a buffer
    ".EncDecAttention.relative_attention_bias.weight",  # of T5's first files: never used
)
_SHARED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
_OLD_NAMES = {"lm_head.weight": "embed_out.weight"}
_OLD_NORMS = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}


@dataclass(frozen=True)
class _Tensor:
    """Where one tensor's bytes lie."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file


@dataclass(frozen=True)
class Leniency:
    """What of a model need not be in a folder.

    `trunk`: the prefix of what must be there all the same; what stands on it (a head, a pooler)
    may be missing, of another shape, or another model's. None: all must be there, and no more.
    `grown`: tensors that may have more rows than the folder's; each new one is the mean of those.
    """

    trunk: str | None = None
    grown: frozenset[str] = frozenset()


class SafetensorsFolder:
    """A FragmentSource: weights from the folder as fp32, moments 0.

    `new`: tensors that the folder does not have and `leniency` allows to lack.
    """

    new: tuple[str, ...]

    def __init__(
        self,
        path: Path,
        layout: Iterable[tuple[str, tuple[int, ...]]],
        *,
        leniency: Leniency | None = None,
        single: str = _SINGLE,
    ) -> None:
        """`layout`: names and whole shapes of the model's tensors (`Engine.layout()`). `single`:
        the file's name where there is one.

        Raises: ModelError if the folder holds no safetensors, if a file is broken, or if tensors
        are missing, have another shape, or are ones that the model has not.
        """
        self._path = path
        names = list(layout)
        self._tensors = _matched(path, _tensors(path, single), names, leniency or Leniency())
        self.new = tuple(name for name, _ in names if name not in self._tensors)
        self._means: dict[str, torch.Tensor] = {}

    def read(self, fragment: Fragment, out: torch.Tensor) -> None:
        """Raises: ModelError if the tensor is not of the layout, or the file cannot be read."""
        if fragment.kind != MASTER:
            out.zero_()
            return
        tensor = self._tensors.get(fragment.name)
        if tensor is None:
            raise ModelError(f"{self._path}: no tensor {fragment.name}")
        stored = max(fragment.start, min(math.prod(tensor.shape), fragment.stop))
        for start in range(fragment.start, stored, _PIECE_ELEMENTS):
            stop = min(start + _PIECE_ELEMENTS, stored)
            out[start - fragment.start : stop - fragment.start].copy_(_piece(tensor, start, stop))
        if stored < fragment.stop:
            mean = self._mean_row(fragment.name, tensor)
            places = torch.arange(stored, fragment.stop) % len(mean)
            out[stored - fragment.start :].copy_(mean[places])

    def _mean_row(self, name: str, tensor: _Tensor) -> torch.Tensor:
        """The same to the bit on every rank: rows are added up in the file's order, in fp64."""
        if name not in self._means:
            rows, width = tensor.shape[0], math.prod(tensor.shape[1:])
            at_a_time = max(1, _PIECE_ELEMENTS // width)
            total = torch.zeros(width, dtype=torch.float64)
            for row in range(0, rows, at_a_time):
                last = min(row + at_a_time, rows)
                piece = _piece(tensor, row * width, last * width)
                total += piece.double().view(-1, width).sum(0)
            self._means[name] = (total / rows).float()
        return self._means[name]


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


def _tensors(path: Path, single: str) -> dict[str, _Tensor]:
    found: dict[str, _Tensor] = {}
    for file in _files(path, single):
        for name, tensor in _header(file).items():
            if name in found:
                raise ModelError(
                    f"{path}: {name} is in both {found[name].file.name} and {file.name}"
                )
            found[name] = tensor
    return found


def _files(path: Path, single: str) -> list[Path]:
    if not path.is_dir():
        raise ModelError(f"{path} is no folder")
    if (path / _INDEX).is_file():
        return [path / name for name in _indexed(path / _INDEX)]
    if (path / single).is_file():
        return [path / single]
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLES)
    if pickles:
        raise ModelError(
            f"{path} has only pickled weights ({pickles[0]}), which can run code when they are "
            "read; save the model again as safetensors (model.save_pretrained(folder))"
        )
    raise ModelError(f"{path} holds no weights: neither {single} nor {_INDEX}")


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
    weights = {n: e for n, e in entries.items() if n != "__metadata__"}
    return {
        name: _entry(file, name, entry, data=8 + length, size=size)
        for name, entry in weights.items()
        if not name.endswith(_NOT_WEIGHTS)
    }


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
    path: Path,
    found: Mapping[str, _Tensor],
    layout: list[tuple[str, tuple[int, ...]]],
    leniency: Leniency,
) -> dict[str, _Tensor]:
    matched: dict[str, _Tensor] = {}
    used: set[str] = set()
    wrong: list[str] = []
    missing: list[str] = []
    for name, shape in layout:
        stored = next((n for n in _stored_names(name) if n in found), None)
        may_be_new = not _in_trunk(name, leniency)
        if stored is None:
            missing += [] if may_be_new else [name]
            continue
        used.add(stored)
        if not _fits(found[stored].shape, tuple(shape), may_grow=name in leniency.grown):
            what = f"{name} is {_size(found[stored].shape)}, not {_size(shape)}"
            wrong += [] if may_be_new else [what]
            continue
        matched[name] = found[stored]
    roots = {_root(name, leniency) for name, _ in layout if _in_trunk(name, leniency)}
    extra = [
        n
        for n in found
        if n not in used
        and not _known_extra(n, matched)
        and (leniency.trunk is None or _root(n, leniency) in roots)
    ]
    said = [_said("lacks", missing), _said("has tensors of another shape:", wrong)]
    said.append(_said("has tensors that the model has not:", extra))
    if any(said):
        raise ModelError(f"{path} does not fit the model: it {'; it '.join(filter(None, said))}")
    return matched


def _stored_names(name: str) -> tuple[str, ...]:
    """A model's own name, older ones, and those of a folder saved without its head."""
    bare = name.partition(".")[2]
    old = next((name[: -len(n)] + o for n, o in _OLD_NORMS.items() if name.endswith(n)), name)
    return (name, _OLD_NAMES.get(name, name), bare, old, old.partition(".")[2])


def _in_trunk(name: str, leniency: Leniency) -> bool:
    if leniency.trunk is None:
        return True
    return name.startswith(leniency.trunk) and not name.startswith(f"{leniency.trunk}pooler.")


def _root(name: str, leniency: Leniency) -> str:
    """The part of a trunk, or of what stands on it, that a tensor is in."""
    return name.removeprefix(leniency.trunk or "").partition(".")[0]


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...], *, may_grow: bool) -> bool:
    if may_grow and len(stored) == len(wanted) and stored:
        return stored[1:] == wanted[1:] and 0 < stored[0] <= wanted[0]
    return stored == wanted


def _known_extra(name: str, matched: Mapping[str, _Tensor]) -> bool:
    """A second copy of a tied head, or of an embedding that two stacks share."""
    if name.endswith(_SHARED):
        return any(n.endswith("shared.weight") for n in matched)
    return name in ("lm_head.weight", *_OLD_NAMES.values()) and "lm_head.weight" not in matched


def _said(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{what} {', '.join(names[:3])}{more}" if names else ""


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in shape) or "a single number"
