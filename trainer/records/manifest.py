"""A checkpoint's manifest, format 1: what is in a step's folder. Written last; makes it real.

One JSON object, one line a tensor and a file. The last line is the sha256 of every byte before it,
and that digest is the checkpoint's identity.

Upgrade policy. `format` rises only when an older reader would misread a checkpoint; fields that an
older reader may ignore come without a new number, and readers ignore fields they do not know. A
reader reads every format up to its own: format n has one function here that turns it into the
classes below. Stored checkpoints are never rewritten. A format from the future is refused by name
(CheckpointMismatch, exit 78) and never taken for damage.

Everything read is checked before it is believed: the text may come from anybody.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from trainer.errors import CheckpointMismatch, DamagedCheckpoint

FORMAT = 1
MANIFEST_NAME = "manifest.json"
LIMIT_BYTES = 1 << 28  # 1.4 million rank files; a larger text is not one of ours
MAX_SPANS = 3  # of one rank file, so that its line stays within 200 bytes

_FORMAT_NAME = "longhaul-checkpoint"
_LARGEST = 2**53  # what every JSON reader keeps exact
_RANK_FILE = re.compile(r"rank-\d{5,7}\.safetensors")
_KIND = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{32}")
_SEAL = re.compile(rb'"sha256":"([0-9a-f]{64})"\}\n')

Rule = Literal["even", "spans"]


@dataclass(frozen=True)
class LogicalTensor:
    """One trained parameter as the model knows it, and the kinds stored for each element."""

    name: str
    shape: tuple[int, ...]
    kinds: tuple[str, ...]  # sorted; "master" and the optimizer's moments

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class RankFile:
    """One rank's file. Units: bytes; spans in elements.

    `digest`: the first 128 bits of the sha256 of the file's header, which holds the checksums of
    all its data. `spans`: ranges of positions, in the order of `Manifest.tensors` laid end to end,
    outside which the file holds nothing (rule "spans"; it need not hold all inside).
    """

    name: str
    size: int
    digest: str
    spans: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """`rule` says which files can hold a range, so that a reader opens only those.

    even   of every tensor of n elements, file r of W holds [r*c, min((r+1)*c, n)), c = ceil(n/W)
    spans  file r holds nothing outside its `spans`
    The table in a file's own header says what it does hold.
    """

    step: int
    world_size: int
    attempt: int
    run_hash: str
    parent_step: int | None  # the checkpoint this run saved or loaded before
    created: float  # seconds since the epoch
    rule: Rule
    tensors: tuple[LogicalTensor, ...]  # in the model's order
    files: tuple[RankFile, ...]  # one a rank, in rank order
    training: Mapping[str, Any]  # the loop's: cursor, tokens seen ...
    origin: Mapping[str, Any]  # who wrote it: engine, stage, versions; for people


def rank_file_name(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def encode(manifest: Manifest) -> bytes:
    """Raises: ValueError if `training` or `origin` is not plain JSON with finite numbers."""
    sets = sorted({t.kinds for t in manifest.tensors})
    head = {
        "name": _FORMAT_NAME,
        "format": FORMAT,
        "step": manifest.step,
        "world_size": manifest.world_size,
        "attempt": manifest.attempt,
        "run_hash": manifest.run_hash,
        "parent_step": manifest.parent_step,
        "created": manifest.created,
        "rule": manifest.rule,
        "training": dict(manifest.training),
        "origin": dict(manifest.origin),
        "kinds": sets,
    }
    tensors = [[t.name, t.shape, sets.index(t.kinds)] for t in manifest.tensors]
    files = [[f.name, f.size, f.digest, [p for s in f.spans for p in s]] for f in manifest.files]
    lines = [f"{_dump(key)}:{_dump(value)},\n" for key, value in head.items()]
    body = "{" + "".join(lines) + f'"tensors":{_rows(tensors)},\n"files":{_rows(files)},\n'
    return body.encode() + f'"sha256":"{hashlib.sha256(body.encode()).hexdigest()}"}}\n'.encode()


def digest_of(content: bytes) -> str:
    """The checkpoint's identity, as its manifest's last line states it; "" if it has none."""
    found = _SEAL.fullmatch(content[content.rfind(b'"sha256"') :])
    return found[1].decode() if found else ""


def decode(content: bytes) -> Manifest:
    """Raises: DamagedCheckpoint; CheckpointMismatch for a format newer than this code."""
    stated = digest_of(content)
    body = content[: content.rfind(b'"sha256"')]
    if not stated or hashlib.sha256(body).hexdigest() != stated:
        _refuse("its text does not match the sha256 in its last line")
    try:
        value = json.loads(content, parse_constant=_refuse)
    except (ValueError, RecursionError) as e:
        raise DamagedCheckpoint(f"{MANIFEST_NAME}: not JSON ({e})") from e
    fields = _mapping(value, "the whole")
    if fields.get("name") != _FORMAT_NAME:
        _refuse(f"name is {fields.get('name')!r} instead of {_FORMAT_NAME!r}")
    number = _whole(fields.get("format"), "format", least=1)
    if number > FORMAT:
        raise CheckpointMismatch(
            f"{MANIFEST_NAME}: format {number} is newer than this version of Longhaul reads "
            f"(up to {FORMAT}); install the version that wrote it, or a later one"
        )
    return _from_1(fields)


def _from_1(fields: Mapping[str, Any]) -> Manifest:
    world_size = _whole(fields.get("world_size"), "world_size", least=1)
    sets = tuple(_kinds(k) for k in _list(fields.get("kinds"), "kinds"))
    tensors = tuple(_tensor(row, sets) for row in _list(fields.get("tensors"), "tensors"))
    if len({t.name for t in tensors}) != len(tensors):
        _refuse("a tensor's name occurs twice")
    elements = sum(t.elements for t in tensors)
    if elements > _LARGEST:
        _refuse(f"{elements} elements")
    rows = _list(fields.get("files"), "files")
    if len(rows) != world_size:
        _refuse(f"{len(rows)} files for a world of {world_size}")
    rule = fields.get("rule")
    if rule not in ("even", "spans"):
        _refuse(f"rule is {rule!r}")
    parent = fields.get("parent_step")
    return Manifest(
        step=_whole(fields.get("step"), "step"),
        world_size=world_size,
        attempt=_whole(fields.get("attempt"), "attempt"),
        run_hash=_text(fields.get("run_hash"), "run_hash"),
        parent_step=None if parent is None else _whole(parent, "parent_step"),
        created=_number(fields.get("created"), "created"),
        rule=rule,
        tensors=tensors,
        files=tuple(_file(row, rank, elements) for rank, row in enumerate(rows)),
        training=_mapping(fields.get("training"), "training"),
        origin=_mapping(fields.get("origin"), "origin"),
    )


def _tensor(row: Any, sets: Sequence[tuple[str, ...]]) -> LogicalTensor:
    name, shape, kinds = _row(row, 3, "a tensor")
    where = f"tensor {name!r}"
    dims = tuple(_whole(d, f"{where}: shape") for d in _list(shape, f"{where}: shape"))
    index = _whole(kinds, f"{where}: kinds")
    if not _text(name, "a tensor's name").isprintable() or not name or len(dims) > 64:
        _refuse(f"{where} cannot be one")
    if index >= len(sets) or math.prod(dims) > _LARGEST:
        _refuse(f"{where} has kinds {index} and shape {list(dims)}")
    return LogicalTensor(name, dims, sets[index])


def _file(row: Any, rank: int, elements: int) -> RankFile:
    name, size, digest, flat = _row(row, 4, "a file")
    if not _RANK_FILE.fullmatch(_text(name, "a file's name")) or name != rank_file_name(rank):
        _refuse(f"file {rank} is named {name!r}")
    if not _DIGEST.fullmatch(_text(digest, f"{name}: digest")):
        _refuse(f"{name}: digest {digest!r}")
    bounds = [_whole(p, f"{name}: spans") for p in _list(flat, f"{name}: spans")]
    if len(bounds) % 2 or bounds != sorted(bounds) or len(bounds) > 2 * MAX_SPANS:
        _refuse(f"{name}: spans {bounds}")
    if bounds and bounds[-1] > elements:
        _refuse(f"{name}: spans end at {bounds[-1]} of {elements} elements")
    spans = tuple(zip(bounds[::2], bounds[1::2], strict=True))
    return RankFile(name, _whole(size, f"{name}: size"), digest, spans)


def _kinds(value: Any) -> tuple[str, ...]:
    kinds = tuple(_text(k, "a kind") for k in _list(value, "kinds"))
    if list(kinds) != sorted(set(kinds)) or not all(_KIND.fullmatch(k) for k in kinds):
        _refuse(f"kinds {list(kinds)}")
    return kinds


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _rows(rows: Sequence[Any]) -> str:
    return "[" + ",\n".join(_dump(row) for row in rows) + "]"


def _refuse(what: str) -> NoReturn:
    raise DamagedCheckpoint(f"{MANIFEST_NAME}: {what}")


def _whole(value: Any, where: str, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= _LARGEST:
        _refuse(f"{where} is {str(value)[:80]}, not a whole number from {least} to {_LARGEST}")
    return value


def _number(value: Any, where: str) -> float:
    if type(value) not in (int, float):
        _refuse(f"{where} is {str(value)[:80]}, not a number")
    return float(value)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or len(value) > 1024:
        _refuse(f"{where} is not a text of at most 1024 characters")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        _refuse(f"{where} is not a list")
    return value


def _row(value: Any, length: int, where: str) -> list[Any]:
    if len(_list(value, where)) != length:
        _refuse(f"{where} has {len(value)} fields instead of {length}")
    return value  # type: ignore[no-any-return]


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        _refuse(f"{where} is not an object")
    return value
