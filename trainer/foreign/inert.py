"""What a foreign pickle may consist of. Plain data: nothing here does anything. Standard library.

What a pickle calls a class or a function is only a `Name` to us. The names that checkpoints need
are listed below, each with what becomes of its arguments; a file that names another one is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


class Forbidden(Exception):
    """The file asks for something that no checkpoint needs, or is not what it says it is."""


@dataclass(frozen=True)
class Name:
    """A global that the file names. It is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


@dataclass
class Pairs:
    """A dictionary: keys need not be hashable here, and nothing is hashed."""

    items: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass
class Record:
    """An object as its arguments and its state."""

    name: str
    arguments: Any = ()
    state: Any = None


@dataclass(frozen=True)
class Storage:
    """`key`: the archive's member with its bytes; `count` elements of `dtype`."""

    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A contiguous tensor that begins `offset` elements into a storage."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]


BYTES_OF = {
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "BFloat16Storage": "bfloat16",
    "HalfStorage": "float16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}
_LARGEST = 2**53


def stored(identity: Any) -> Storage:
    """What torch's ("storage", type, key, location, count) means. Raises: Forbidden."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise Forbidden("it refers to something outside of itself")
    _, kind, key, _, count = identity
    if not isinstance(kind, Name) or kind.module not in ("torch", "torch.storage"):
        raise Forbidden("it has a storage of an unknown kind")
    dtype = "uint8" if kind.name == "UntypedStorage" else _STORAGES.get(kind.name)
    if dtype is None:
        raise Forbidden(f"it has a storage of the kind {kind}")
    if not isinstance(key, str) or not key.isdecimal() or len(key) > 12:
        raise Forbidden(f"it has a storage named {str(key)[:80]!r}")
    return Storage(dtype, key, whole(count, "a storage's size"))


def whole(value: Any, what: str) -> int:
    """Raises: Forbidden unless it is a size or a place."""
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise Forbidden(f"{what} is {str(value)[:80]}")
    return value


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Tensor:
    if not isinstance(storage, Storage) or not isinstance(shape, tuple | list):
        raise Forbidden("it has a tensor without a storage or a shape")
    dims = tuple(whole(d, "a tensor's dimension") for d in shape)
    if len(dims) > 64 or not isinstance(stride, tuple | list) or len(stride) != len(dims):
        raise Forbidden("it has a tensor whose shape and strides do not fit")
    expected, found = 1, list(stride)
    for dim, step in reversed(list(zip(dims, found, strict=True))):
        if dim > 1 and step != expected and 0 not in dims:
            raise Forbidden("it has a tensor that does not lie in one piece")
        expected *= dim
        whole(expected, "a tensor's size")
    dtype = storage.dtype
    for extra in rest:  # torch >= 2.1 names the type of elements beside an untyped storage
        if isinstance(extra, Name) and extra.module == "torch" and extra.name in BYTES_OF:
            dtype = extra.name
    return Tensor(storage, dtype, whole(offset, "a tensor's offset"), dims)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _from_type(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """A tensor with attributes of its own, which are dropped."""
    if not isinstance(function, Name) or not isinstance(arguments, tuple):
        raise Forbidden("it rebuilds a tensor by something that is no name")
    return called(function, arguments)


def _ordered(*arguments: Any) -> Pairs:
    if not arguments:
        return Pairs()
    (pairs,) = arguments
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in pairs):
        raise Forbidden("it has an ordered dictionary that is none")
    return Pairs([(pair[0], pair[1]) for pair in pairs])


def _sequence(*arguments: Any) -> tuple[Any, ...]:
    if not arguments:
        return ()
    (items,) = arguments
    if not isinstance(items, tuple | list):
        raise Forbidden("it has a size that is none")
    return tuple(items)


def _record(name: str) -> Callable[..., Record]:
    return lambda *arguments: Record(name, arguments)


_DCP = "torch.distributed.checkpoint"
_RECORDS = (
    *((f"{_DCP}.metadata", name) for name in ("Metadata", "TensorStorageMetadata")),
    *((f"{_DCP}.metadata", name) for name in ("BytesStorageMetadata", "ChunkStorageMetadata")),
    *((f"{_DCP}.metadata", name) for name in ("TensorProperties", "MetadataIndex")),
    *((f"{_DCP}.metadata", name) for name in ("StorageMeta", "_MEM_FORMAT_ENCODING")),
    (f"{_DCP}.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "device"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"),
    ("deepspeed.utils.tensor_fragment", "fragment_address"),
    ("argparse", "Namespace"),
)
ALLOWED: Mapping[tuple[str, str], Callable[..., Any]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("collections", "OrderedDict"): _ordered,
    ("torch", "Size"): _sequence,
    ("builtins", "set"): _sequence,
    ("builtins", "frozenset"): _sequence,
    ("builtins", "list"): lambda *items: list(_sequence(*items)),
    ("builtins", "tuple"): _sequence,
    ("builtins", "dict"): _ordered,
    **{place: _record(".".join(place)) for place in _RECORDS},
}
# Named by checkpoints, and never called.
_VALUES = {
    *(("torch", name) for name in (*_STORAGES, *BYTES_OF, "Tensor", "long", "half", "double")),
    ("torch", "strided"),
    ("torch.storage", "UntypedStorage"),
    ("torch.nn.parameter", "Parameter"),
}


def named(module: Any, name: Any) -> Name:
    """Raises: Forbidden unless checkpoints need it."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise Forbidden("it names something by what is no text")
    found = Name({"__builtin__": "builtins"}.get(module, module), name)
    if (found.module, found.name) not in ALLOWED and (found.module, found.name) not in _VALUES:
        raise Forbidden(f"it names {found}, which no checkpoint needs")
    return found


def called(function: Any, arguments: Any) -> Any:
    """Raises: Forbidden unless the name may stand before arguments."""
    make = ALLOWED.get((function.module, function.name)) if isinstance(function, Name) else None
    if make is None or not isinstance(arguments, tuple):
        raise Forbidden(f"it calls {str(function)[:80]}, which no checkpoint does")
    try:
        return make(*arguments)
    except (TypeError, ValueError) as e:
        raise Forbidden(f"it calls {function} with arguments that do not fit") from e
