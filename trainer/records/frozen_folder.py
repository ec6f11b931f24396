"""Which files a run's frozen parameters come from: they are in no checkpoint, so that a folder that
changes would change the model under what was trained.

    {"model.safetensors": {"bytes": 123, "modified_ns": 456, "sha256": "..."}, ...}

A file of the same size and time is taken for the same; otherwise its content is read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.errors import ModelError
from trainer.records.json_file import read_json, write_json

_PIECE = 1 << 24


@dataclass(frozen=True)
class _Seen:
    bytes: int
    modified_ns: int
    sha256: str


def hold_on_to(folder: Path, record: Path) -> None:
    """Write down what the folder holds, or look whether it still holds what was written down.

    Raises: ModelError naming a file that is another one, or gone.
    """
    if not record.is_file():
        found = {file.name: _seen(file) for file in _files(folder)}
        write_json(record, {name: asdict(one) for name, one in found.items()})
        return
    known = {name: _Seen(**value) for name, value in read_json(record).items()}
    for name, before in known.items():
        file = folder / name
        if not file.is_file():
            raise _changed(folder, f"{name} is gone")
        if not _is_same(file, before):
            raise _changed(folder, f"{name} is another file")
    more = [file.name for file in _files(folder) if file.name not in known]
    if more:
        raise _changed(folder, f"{more[0]} was not there")


def _changed(folder: Path, what: str) -> ModelError:
    return ModelError(
        f"{folder} is not what this run's frozen parameters came from: {what}; put the old folder "
        "back, or start another run"
    )


def _is_same(file: Path, before: _Seen) -> bool:
    now = file.stat()
    if now.st_size != before.bytes:
        return False
    return now.st_mtime_ns == before.modified_ns or _digest(file) == before.sha256


def _files(folder: Path) -> Iterator[Path]:
    """What decides about the model: its weights, their index, its shape."""
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors" or file.name.endswith((".index.json", "config.json")):
            yield file


def _seen(file: Path) -> _Seen:
    stat = file.stat()
    return _Seen(stat.st_size, stat.st_mtime_ns, _digest(file))


def _digest(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
