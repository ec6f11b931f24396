"""What every reader of a format is given and gives."""

from __future__ import annotations

import codecs
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from trainer.config.sections.examples import FieldName, RecordsSource
from trainer.data.file_sources import BOM, utf8
from trainer.data.file_sources import opened as bytes_of
from trainer.errors import DataError

Reject = Callable[[str], None]
_PROBE_BYTES = 8192


@dataclass(frozen=True)
class Row:
    """A row under the file's own names. `where`: for messages, "train.csv row 7"."""

    values: Mapping[str, Any]
    file: str
    row: int

    @property
    def where(self) -> str:
        return f"{self.file} row {self.row}"


@dataclass(frozen=True)
class Wanted:
    """The fields a task takes. Nothing named: whatever the files have, under their own names."""

    required: tuple[FieldName, ...] = ()
    optional: tuple[FieldName, ...] = ()

    @property
    def every(self) -> tuple[FieldName, ...]:
        return (*self.required, *self.optional)


ANY = Wanted()
Reader = Callable[[RecordsSource, Path, Reject], Iterator[Row]]


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, gunzipped if its name says so; what goes wrong is a DataError."""
    try:
        with bytes_of(path) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path} cannot be read: {e}") from e


def checked_start(stream: IO[bytes], path: Path, *, reject: Reject) -> bool:
    """Whether there is text to read; rewinds. An empty or binary file is rejected."""
    start = stream.read(_PROBE_BYTES)
    stream.seek(0)
    if not start.removeprefix(BOM).strip() and len(start) < _PROBE_BYTES:
        reject(f"{path} is empty")
        return False
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reject(f"{path} is UTF-16; save it as UTF-8")
        return False
    if (zero := start.find(b"\0")) >= 0:
        reject(f"{path} is a binary file (a zero byte at offset {zero})")
        return False
    return True


def line_text(raw: bytes, *, path: Path, row: int, offset: int, reject: Reject) -> str | None:
    """A line of a file; one that is no text is rejected with its row and comes back as None."""

    def said(why: str) -> None:
        reject(f"{why}, in row {row}; save the file as UTF-8")

    return utf8(raw, path=path, offset=offset, reject=said)
