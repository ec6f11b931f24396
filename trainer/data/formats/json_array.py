"""A JSON list of rows, read a row at a time: a file of any size in bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from trainer.config.sections.examples import RecordsSource
from trainer.data.file_sources import BOM
from trainer.data.formats.rows import Reject, Row, checked_start, opened
from trainer.errors import DataError

_CHUNK_BYTES = 1 << 16
_SPACE = " \t\r\n"


def json_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    """Raises: DataError where the file stops being JSON: what comes after cannot be found."""
    with opened(path) as stream:
        if not checked_start(stream, path, reject=reject):
            return
        for number, value in enumerate(items(stream, path, limit=source.max_row_bytes), 1):
            if isinstance(value, dict):
                yield Row(value, str(path), number)
            else:
                kind = type(value).__name__
                reject(f"{path} row {number} is {kind}, not an object with named fields")


def items(stream: IO[bytes], path: Path, *, limit: int, key: str = "") -> Iterator[Any]:
    """The values of a list; with `key`, of the list of that name in the object at the top.

    Raises: DataError if it is not JSON, has no such list, or one value is longer than `limit`.
    """
    text = _Text(stream, path, limit=limit)
    if key:
        _go_to(text, key)
    text.take("[")
    if text.next_mark() == "]":
        return
    while True:
        yield text.value()
        if text.next_mark() == "]":
            return
        text.take(",")


def _go_to(text: _Text, key: str) -> None:
    text.take("{")
    while text.value() != key:
        text.take(":")
        text.value()
        if text.next_mark() != ",":
            raise text.error(f"there is no list named '{key}' in it")
        text.take(",")
    text.take(":")


class _Text:
    """A window on the file's text that starts at what was not taken yet."""

    def __init__(self, stream: IO[bytes], path: Path, *, limit: int) -> None:
        self._stream = stream
        self._path = path
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("strict")
        self._json = json.JSONDecoder()
        self._held = ""
        self._at = 0
        self._bytes_read = 0
        self._ended = False

    def next_mark(self) -> str:
        """The next character that is no space, not taken; "" at the end."""
        while True:
            while self._at < len(self._held) and self._held[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._held):
                return self._held[self._at]
            if not self._more(_CHUNK_BYTES):
                return ""

    def take(self, mark: str) -> None:
        found = self.next_mark()
        if found != mark:
            what = f"{found!r} stands" if found else "it ends"
            raise self.error(f"{what} where {mark!r} should be")
        self._at += 1

    def value(self) -> Any:
        """The next value, taken. A window that ends inside of it grows twofold."""
        self.next_mark()
        size = _CHUNK_BYTES
        while True:
            try:
                value, end = self._json.raw_decode(self._held, self._at)
                # a number at the window's edge may go on
                if end < len(self._held) or self._ended or not self._more(size):
                    self._at = end
                    return value
            except (ValueError, RecursionError) as e:
                if len(self._held) - self._at > self._limit:
                    long = f"a value is longer than max_row_bytes={self._limit:,}"
                    raise self.error(f"{e}, or {long}") from e
                if not self._more(size):
                    raise self.error(str(e)) from e
            size *= 2

    def error(self, what: str) -> DataError:
        near = f"before byte {self._bytes_read:,}"
        return DataError(f"{self._path} is not the JSON it should be, {near}: {what}")

    def _more(self, size: int) -> bool:
        raw = self._stream.read(size)
        if self._bytes_read == 0:
            raw = raw.removeprefix(BOM)
        try:
            text = self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as e:
            offset = self._bytes_read + e.start
            byte = e.object[e.start]
            raise DataError(
                f"{self._path} is not UTF-8: byte 0x{byte:02x} near offset {offset}"
            ) from e
        self._bytes_read += len(raw)
        self._held, self._at = self._held[self._at :] + text, 0
        self._ended = not raw
        return bool(raw)
