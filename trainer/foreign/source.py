"""Somebody's checkpoint as logical tensors: every one a row of pieces of files. Torch-free."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.errors import Refused
from trainer.foreign.inert import BYTES_OF
from trainer.foreign.sandbox import TensorPlace, open_plainly
from trainer.records.fragment import MASTER, Fragment
from trainer.storage.local import Bytes

_BLOCK_ELEMENTS = 4 << 20
_FLOATS = {"float32": "<f4", "float64": "<f8", "float16": "<f2"}
_WHOLE = {"int64": "<i8", "int32": "<i4", "float32": "<f4", "float64": "<f8"}
_MOST = 1 << 40


@dataclass(frozen=True)
class Piece:
    """`elements` numbers of one type that lie in one piece at byte `offset` of a file."""

    file: Path
    offset: int
    dtype: str
    elements: int


@dataclass(frozen=True)
class Flat:
    """A flattened tensor: its pieces, one after the other. `shape` None: a flat buffer."""

    pieces: tuple[Piece, ...]
    shape: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        return sum(piece.elements for piece in self.pieces)


@dataclass(frozen=True, kw_only=True)
class Source:
    """What is to be imported. `tensors`: (name, kind) -> values; names as the source has them.

    `step`: how many updates its optimizer made; None where it does not say.
    """

    what: str  # for people: "DeepSpeed ZeRO-3, 2 ranks"
    step: int | None
    tensors: Mapping[tuple[str, str], Flat]

    @property
    def moments(self) -> frozenset[str]:
        return frozenset(kind for _, kind in self.tensors if kind != MASTER)

    def without_moments(self) -> Source:
        kept = {key: flat for key, flat in self.tensors.items() if key[1] == MASTER}
        return replace(self, step=None, tensors=kept)


def flat_of(place: Any, what: str) -> Flat:
    """Raises: Refused unless it is a tensor."""
    if not isinstance(place, TensorPlace):
        raise Refused(f"{what} is no tensor")
    piece = Piece(place.file, place.offset, place.dtype, place.elements)
    return Flat((piece,), place.shape)


def end_to_end(flats: Iterable[Flat]) -> Flat:
    return Flat(tuple(piece for flat in flats for piece in flat.pieces))


def cut(flat: Flat, start: int, stop: int, what: str) -> Flat:
    """Elements [start, stop). Raises: Refused if there are not so many."""
    if not 0 <= start <= stop <= flat.elements:
        raise Refused(f"{what} should be elements {start}-{stop} of {flat.elements}")
    found, at = [], 0
    for piece in flat.pieces:
        first, last = max(start, at), min(stop, at + piece.elements)
        if first < last:
            offset = piece.offset + (first - at) * BYTES_OF[piece.dtype]
            found.append(replace(piece, offset=offset, elements=last - first))
        at += piece.elements
    return Flat(tuple(found))


def number(place: Any, what: str) -> int:
    """A count that is stored as a number or as a tensor of one. Raises: Refused."""
    if isinstance(place, TensorPlace):
        flat = flat_of(place, what)
        if flat.elements != 1 or place.dtype not in _WHOLE:
            raise Refused(f"{what} is no single number")
        descriptor = open_plainly(place.file)
        try:
            data = os.pread(descriptor, BYTES_OF[place.dtype], place.offset)
        finally:
            os.close(descriptor)
        place = np.frombuffer(data, _WHOLE[place.dtype])[0].item()
    if isinstance(place, bool) or not isinstance(place, int | float):
        raise Refused(f"{what} is no number")
    if place != place or not 0 <= place <= _MOST or int(place) != place:
        raise Refused(f"{what} is {place}, which is no count")
    return int(place)


# --- names ---------------------------------------------------------------------------------------


def fitted(source: Source, wanted: Sequence[Fragment]) -> dict[tuple[str, str], Flat]:
    """For every whole tensor that the run holds, where its values lie; `source` has all or none
    of the moments. Names may carry one prefix (`module.`), the same everywhere.

    Raises: Refused with the first names or shapes that do not fit.
    """
    found: dict[tuple[str, str], Flat] = {}
    for kind in {f.kind for f in wanted} & ({MASTER} | source.moments):
        names = [f.name for f in wanted if f.kind == kind]
        stored = {name for name, k in source.tensors if k == kind}
        prefix = _prefix(names, stored)
        missing = [name for name in names if prefix + name not in stored]
        extra = sorted(stored - {prefix + name for name in names})
        extra = [name for name in extra if not _is_copy(name, prefix, names)]
        if missing:
            has = f"; it has {extra[0]!r}, for one" if extra else ""
            raise Refused(f"{_which(source, kind)}: it lacks {_some(missing)}{has}")
        if extra and kind == MASTER:
            raise Refused(f"{_which(source, kind)}: the model has no {_some(extra)}")
        for f in wanted:
            if f.kind == kind:
                found[f.name, kind] = _of_shape(source.tensors[prefix + f.name, kind], f)
    return found


def _which(source: Source, kind: str) -> str:
    values = "weights" if kind == MASTER else kind
    return f"the source's {values} ({source.what}) do not fit the run's model"


def _prefix(names: Sequence[str], stored: set[str]) -> str:
    first = names[0]
    ends = (name.removesuffix(first) for name in stored if name.endswith(first))
    fitting = {p: sum(p + name in stored for name in names) for p in ends}
    return max(sorted(fitting, key=len), key=lambda p: fitting[p], default="")


def _is_copy(name: str, prefix: str, names: Sequence[str]) -> bool:
    """A head that is tied to the embedding is stored by some as a tensor of its own."""
    short = name.removeprefix(prefix)
    return short.endswith("lm_head.weight") and not any(n.endswith("lm_head.weight") for n in names)


def _of_shape(flat: Flat, wanted: Fragment) -> Flat:
    what = f"{wanted.kind} of {wanted.name!r}"
    if flat.shape is not None and flat.shape != wanted.shape:
        raise Refused(f"{what} has shape {list(flat.shape)}, the run's model {list(wanted.shape)}")
    if flat.elements != wanted.length:
        raise Refused(f"{what} has {flat.elements} numbers, the run's model {wanted.length}")
    odd = {p.dtype for p in flat.pieces} - _FLOATS.keys() - {"bfloat16"}
    if odd:
        raise Refused(f"{what} is stored as {min(odd)}, which is no type to train in")
    return flat


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more


# --- values --------------------------------------------------------------------------------------


def blocks(flat: Flat) -> Iterator[Bytes]:
    """The values as fp32, 16 MiB at most at a time. Raises: Refused if a file became shorter."""
    for piece in flat.pieces:
        descriptor = open_plainly(piece.file)
        try:
            for start in range(0, piece.elements, _BLOCK_ELEMENTS):
                count = min(_BLOCK_ELEMENTS, piece.elements - start)
                yield _floats(descriptor, piece, start, count).view(np.uint8)
        finally:
            os.close(descriptor)


def zeros(elements: int) -> Iterator[Bytes]:
    for start in range(0, elements, _BLOCK_ELEMENTS):
        yield np.zeros(min(_BLOCK_ELEMENTS, elements - start) * 4, np.uint8)


def _floats(descriptor: int, piece: Piece, start: int, count: int) -> np.ndarray[Any, Any]:
    size = BYTES_OF[piece.dtype]
    data = np.empty(count * size, np.uint8)
    if os.preadv(descriptor, [data.data], piece.offset + start * size) != len(data):
        raise Refused(f"{piece.file} became shorter while it was read")
    if piece.dtype == "bfloat16":  # the upper half of an fp32
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(data.view(_FLOATS[piece.dtype]), dtype=np.float32)
