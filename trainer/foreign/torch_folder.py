"""torch's own checkpoints: a DCP folder, or files (`.bin`, `.pt`) that torch.save wrote.

A DCP folder has `.metadata`, a pickle that says which chunk of which tensor lies where in which
`.distcp` file; every chunk there is a whole archive of torch.save. All of them go to the sandbox.
"""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

from trainer.errors import Refused
from trainer.foreign.sandbox import Range, Sandbox, TensorPlace, Thing, open_plainly
from trainer.foreign.source import Flat, Source, end_to_end, flat_of, number
from trainer.records.fragment import MASTER

METADATA = ".metadata"
INDEX = "pytorch_model.bin.index.json"
_SINGLE = "pytorch_model.bin"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer")
_STEPS = ("step", "global_step", "iteration")
_MOST_INDEX = 64 << 20


# --- DCP -----------------------------------------------------------------------------------------


def read_dcp(folder: Path, sandbox: Sandbox) -> Source:
    """Raises: Refused."""
    (metadata,) = sandbox.read(folder / METADATA, [("bare", 0, None)])
    state = metadata.state if isinstance(metadata, Thing) else None
    if not isinstance(state, dict) or not isinstance(state.get("state_dict_metadata"), dict):
        raise Refused(f"{folder / METADATA} is not what torch's checkpoints have there")
    described = state["state_dict_metadata"]
    placed = _placed(state.get("storage_data"), folder)
    wanted = {n: _chunks(n, d) for n, d in described.items() if _is_tensor(d)}
    values = _values(wanted, placed, folder, sandbox)
    tensors: dict[tuple[str, str], Flat] = {}
    updates: set[int] = set()
    for name, flat in values.items():
        short, kind = _parted(name)
        if kind == "step":
            updates.add(number(_only(flat), name))
        else:
            tensors[short, kind] = flat
    if len(updates) > 1:
        raise Refused(f"{folder}: its tensors had {min(updates)} and {max(updates)} updates")
    step = updates.pop() if updates else None
    return Source(what="torch DCP", step=step, tensors=tensors)


def _is_tensor(described: Any) -> bool:
    return isinstance(described, Thing) and described.name.endswith(".TensorStorageMetadata")


def _parted(name: str) -> tuple[str, str]:
    """`optim.state.head.weight.exp_avg` -> (`optim.state.head.weight`, `exp_avg`)."""
    short, _, last = name.rpartition(".")
    is_moment = last in _MOMENTS or last == "step"
    return (short, last) if is_moment and "state." in short else (name, MASTER)


def _placed(storage: Any, folder: Path) -> dict[tuple[str, tuple[int, ...]], tuple[Path, int, int]]:
    """(tensor, where its chunk begins) -> file, offset, length."""
    found = {}
    for index, info in storage if isinstance(storage, tuple) else ():
        if not (isinstance(index, Thing) and isinstance(info, Thing)):
            raise Refused(f"{folder / METADATA} does not say where its tensors lie")
        at, place = index.state, info.state
        name = place.get("relative_path")
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise Refused(f"{folder / METADATA} names {name!r}, which is no file beside it")
        if place.get("transform_descriptors"):
            raise Refused(f"{folder} is compressed or encrypted by an extension of torch's")
        offset, length = (number(place.get(k), k) for k in ("offset", "length"))
        key = (str(at.get("fqn")), tuple(at.get("offset") or ()))
        found[key] = (folder / name, offset, length)
    return found


_Chunk = tuple[tuple[int, ...], tuple[int, ...]]  # offsets, sizes


def _chunks(name: str, described: Thing) -> tuple[tuple[int, ...], list[_Chunk]]:
    """The whole shape, and the chunks in order. Raises: Refused unless they cut rows."""
    state = described.state if isinstance(described.state, dict) else {}
    shape = tuple(number(d, f"a dimension of {name!r}") for d in state.get("size") or ())
    chunks = []
    for chunk in state.get("chunks") or ():
        inside = chunk.state if isinstance(chunk, Thing) else {}
        sides = (tuple(inside.get(k) or ()) for k in ("offsets", "sizes"))
        offsets, sizes = (tuple(number(d, name) for d in side) for side in sides)
        chunks.append((offsets, sizes))
    chunks.sort()
    at = 0
    for offsets, sizes in chunks:
        rows = sizes[0] if sizes else 1
        is_rows = not shape or (offsets == (at, *(0,) * len(shape[1:])) and sizes[1:] == shape[1:])
        if len(sizes) != len(shape) or not is_rows:
            raise Refused(f"{name!r} is cut by more than rows; save it with FSDP or unsharded")
        at += rows
    if at != (shape[0] if shape else 1):
        raise Refused(f"{name!r} has {at} of {shape[0] if shape else 1} rows")
    return shape, [chunk for chunk in chunks if prod(chunk[1])]


def _values(
    wanted: dict[str, tuple[tuple[int, ...], list[_Chunk]]],
    placed: dict[tuple[str, tuple[int, ...]], tuple[Path, int, int]],
    folder: Path,
    sandbox: Sandbox,
) -> dict[str, Flat]:
    """Every chunk's archive is looked into, one process a file."""
    by_file: dict[Path, list[tuple[str, _Chunk, Range]]] = defaultdict(list)
    for name, (_, chunks) in wanted.items():
        for chunk in chunks:
            if (name, chunk[0]) not in placed:
                raise Refused(f"{folder / METADATA} does not say where {name!r} lies")
            file, offset, length = placed[name, chunk[0]]
            by_file[file].append((name, chunk, ("archive", offset, offset + length)))
    parts: dict[str, list[tuple[_Chunk, Flat]]] = defaultdict(list)
    for file, entries in by_file.items():
        answers = sandbox.read(file, [where for _, _, where in entries])
        for (name, chunk, _), answer in zip(entries, answers, strict=True):
            flat = flat_of(answer, f"{file.name}: {name!r}")
            if flat.shape != chunk[1]:
                raise Refused(f"{file}: {name!r} has shape {flat.shape}, not {chunk[1]}")
            parts[name].append((chunk, flat))
    return {
        name: Flat(end_to_end(f for _, f in sorted(parts[name], key=_by_chunk)).pieces, shape)
        for name, (shape, _) in wanted.items()
    }


def _by_chunk(part: tuple[_Chunk, Flat]) -> _Chunk:
    return part[0]


def _only(flat: Flat) -> Any:
    if len(flat.pieces) != 1:
        return None
    (piece,) = flat.pieces
    return TensorPlace(piece.file, piece.offset, piece.dtype, flat.shape or ())


# --- torch.save ----------------------------------------------------------------------------------


def is_saved_by_torch(path: Path) -> bool:
    if path.is_file():
        return path.suffix in (".bin", ".pt", ".pth", ".ckpt")
    return (path / INDEX).is_file() or (path / _SINGLE).is_file()


def read_torch_files(path: Path, sandbox: Sandbox) -> Source:
    """Weights alone. Raises: Refused."""
    files = [path] if path.is_file() else list(_weight_files(path))
    tensors: dict[tuple[str, str], Flat] = {}
    for file in files:
        (tree,) = sandbox.read(file)
        for name, value in _state_dict(tree, file).items():
            if (name, MASTER) in tensors:
                raise Refused(f"{file}: {name!r} is in another file too")
            tensors[name, MASTER] = flat_of(value, f"{file}: {name!r}")
    return Source(what=f"{len(files)} file(s) of torch.save", step=None, tensors=tensors)


def _weight_files(folder: Path) -> Iterator[Path]:
    if not (folder / INDEX).is_file():
        yield folder / _SINGLE
        return
    descriptor = open_plainly(folder / INDEX)
    try:
        text = os.pread(descriptor, _MOST_INDEX + 1, 0)
    finally:
        os.close(descriptor)
    if len(text) > _MOST_INDEX:
        raise Refused(f"{folder / INDEX} is larger than {_MOST_INDEX:,} bytes")
    try:
        names = sorted(set(json.loads(text)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise Refused(f"{folder / INDEX} is no index of weight files: {e!r:.100}") from e
    for name in names:
        if not isinstance(name, str) or not _FILE.fullmatch(name):
            raise Refused(f"{folder / INDEX} names {name!r}, which is no file beside it")
        yield folder / name


def _state_dict(tree: Any, file: Path) -> dict[str, Any]:
    """The tensors by name, out of the wrappers that people put around them."""
    for key in _WRAPPERS:
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not isinstance(tree, dict) or not any(isinstance(v, TensorPlace) for v in tree.values()):
        raise Refused(f"{file} has no table of tensors (a state_dict)")
    return {str(n): v for n, v in tree.items() if isinstance(v, TensorPlace)}
