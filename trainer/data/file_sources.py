"""Documents of text and JSON-lines files, plain or gzipped, read in bounded memory.

UTF-8 is strict: a byte that is not names the file and its offset (in the uncompressed text).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, cast

from trainer.config.sections.data import FilesSource
from trainer.errors import DataError

Reject = Callable[[str], None]
BOM = b"\xef\xbb\xbf"
_PROBE_BYTES = 8192


def file_documents(source: FilesSource, *, files: Sequence[Path], reject: Reject) -> Iterator[str]:
    """The documents of `files` in order. `reject` is told of each bad one, and may raise.

    Raises: DataError if a file cannot be read or is binary.
    """
    for path in files:
        try:
            with opened(path) as stream:
                yield from _documents(source, path=path, stream=stream, reject=reject)
        except (OSError, EOFError, zlib.error) as e:
            raise DataError(f"{path} cannot be read: {e}") from e


def _documents(
    source: FilesSource, *, path: Path, stream: IO[bytes], reject: Reject
) -> Iterator[str]:
    start = stream.read(_PROBE_BYTES)
    if not start.strip():
        rest_is_blank = len(start) < _PROBE_BYTES
        if rest_is_blank:
            reject(f"{path} is empty" if not start else f"{path} holds nothing but white space")
            return
    if (zero := start.find(b"\0")) >= 0:
        reject(f"{path} is a binary file (a zero byte at offset {zero})")
        return
    stream.seek(0)
    if source.format == "jsonl":
        yield from _json_lines(source, path=path, stream=stream, reject=reject)
    elif source.document == "paragraph":
        yield from _paragraphs(source, path=path, stream=stream, reject=reject)
    else:
        yield from _whole(source, path=path, stream=stream, reject=reject)


def _whole(source: FilesSource, *, path: Path, stream: IO[bytes], reject: Reject) -> Iterator[str]:
    raw = stream.read(source.max_document_bytes + 1)
    if len(raw) > source.max_document_bytes:
        reject(
            f"{path} is longer than max_document_bytes={source.max_document_bytes:,} "
            "(document=paragraph splits it at blank lines)"
        )
        return
    text = utf8(raw, path=path, offset=0, reject=reject)
    if text:
        yield text


def _paragraphs(
    source: FilesSource, *, path: Path, stream: IO[bytes], reject: Reject
) -> Iterator[str]:
    held: list[bytes] = []
    begin = size = 0
    for number, offset, line in byte_lines(stream, limit=source.max_document_bytes):
        if line is not None and line.strip():
            begin = begin if held else offset
            held.append(line)
            size += len(line)
        if line is None or size > source.max_document_bytes:
            what = f"longer than max_document_bytes={source.max_document_bytes:,}"
            reject(f"{path} line {number}: the paragraph is {what}")
            held, size = [], 0
        elif held and not line.strip():
            text = utf8(b"".join(held), path=path, offset=begin, reject=reject)
            held, size = [], 0
            if text:
                yield text
    if held:
        text = utf8(b"".join(held), path=path, offset=begin, reject=reject)
        if text:
            yield text


def _json_lines(
    source: FilesSource, *, path: Path, stream: IO[bytes], reject: Reject
) -> Iterator[str]:
    key = source.text_key
    for number, offset, line in byte_lines(stream, limit=source.max_document_bytes):
        where = f"{path} line {number}"
        if line is None:
            reject(f"{where} is longer than max_document_bytes={source.max_document_bytes:,}")
            continue
        if not line.strip():
            continue
        content = utf8(line, path=path, offset=offset, reject=reject)
        if not content:
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as e:
            reject(f"{where} is not JSON ({e})")
            continue
        if not isinstance(row, dict) or key not in row:
            known = ", ".join(list(row)[:6]) if isinstance(row, dict) else type(row).__name__
            reject(f"{where} has no field '{key}' (it has: {known}; set text_key)")
        elif not isinstance(row[key], str):
            reject(f"{where}: the field '{key}' is {type(row[key]).__name__}, not text")
        elif not is_text(row[key]):
            reject(f"{where}: the field '{key}' holds half a surrogate pair, which is no text")
        elif row[key]:
            yield row[key]


def byte_lines(stream: IO[bytes], *, limit: int) -> Iterator[tuple[int, int, bytes | None]]:
    """(number from 1, byte offset, line); None for a line of more than `limit` bytes."""
    number = offset = 0
    while line := stream.readline(limit + 2):
        number += 1
        length = len(line)
        too_long = len(line.rstrip(b"\r\n")) > limit
        while too_long and not line.endswith(b"\n") and (line := stream.readline(1 << 20)):
            length += len(line)
        yield number, offset, None if too_long else line
        offset += length


def utf8(raw: bytes, *, path: Path, offset: int, reject: Reject) -> str | None:
    try:
        return (raw.removeprefix(BOM) if offset == 0 else raw).decode("utf-8")
    except UnicodeDecodeError as e:
        at = offset + e.start + (len(BOM) if offset == 0 and raw.startswith(BOM) else 0)
        reject(f"{path} is not UTF-8: byte 0x{e.object[e.start]:02x} at offset {at}")
        return None


def is_text(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def opened(path: Path) -> IO[bytes]:
    if path.suffix == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb", buffering=1 << 20)
