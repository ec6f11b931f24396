"""CSV and TSV, plain or gzipped: the dialects of Python's csv module, strict about its errors."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from trainer.config.sections.examples import RecordsSource
from trainer.data.file_sources import byte_lines
from trainer.data.formats.rows import Reject, Row, checked_start, line_text, opened
from trainer.errors import DataError

_DELIMITERS = ",;\t|"


class _CsvReader(Protocol):
    """csv.reader's object, whose type the module does not name."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...


def csv_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    return _rows(source, path, reject, default=",")


def tsv_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    return _rows(source, path, reject, default="\t")


def delimiter_of(source: RecordsSource, first_line: str, *, default: str) -> str:
    """The setting, or the one candidate in the first line, or the default of the format."""
    if source.delimiter:
        return source.delimiter
    present = [mark for mark in _DELIMITERS if mark in first_line]
    return present[0] if len(present) == 1 else default


def _rows(source: RecordsSource, path: Path, reject: Reject, *, default: str) -> Iterator[Row]:
    with opened(path) as stream:
        if not checked_start(stream, path, reject=reject):
            return
        first = stream.readline(source.max_row_bytes).decode("utf-8", errors="replace")
        stream.seek(0)
        # the csv module keeps this limit for the whole process; 128 KiB would refuse long texts
        csv.field_size_limit(source.max_row_bytes)
        quotes = source.quotes if source.quotes is not None else default == ","
        reader = csv.reader(
            _decoded(byte_lines(stream, limit=source.max_row_bytes), path=path, reject=reject),
            delimiter=delimiter_of(source, first, default=default),
            quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
            strict=True,
        )
        names = _header(reader, path) if source.header else None
        for line, cells in _cells(reader, path, reject):
            if names is None:
                names = [str(n) for n in range(1, len(cells) + 1)]
            if len(cells) == len(names):
                yield Row(dict(zip(names, cells, strict=True)), str(path), line)
            else:
                have = f"{len(cells)} cells, the first line has {len(names)}"
                reject(f"{path} row {line} has {have} (delimiter, quotes and header can be set)")


def _cells(reader: _CsvReader, path: Path, reject: Reject) -> Iterator[tuple[int, list[str]]]:
    """(line on which the row starts, its cells) of every row that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            hint = "a text with a single quote mark in it needs quotes=false, or the mark doubled"
            reject(f"{path} row {line} is not valid in its dialect: {e} ({hint})")
            continue
        if cells:
            yield line, cells


def _header(reader: _CsvReader, path: Path) -> list[str]:
    try:
        names = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration) as e:
        raise DataError(f"{path} row 1 is no line of column names: {e}") from e
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} row 1 names the column {twice[0]!r} twice; if the file begins with data "
            "instead of names, set header=false and number the columns from 1"
        )
    return names


def _decoded(
    lines: Iterator[tuple[int, int, bytes | None]], *, path: Path, reject: Reject
) -> Iterator[str]:
    """A line that is no text becomes a blank one, so that the numbers of lines stay right."""
    for number, offset, line in lines:
        if line is None:
            reject(f"{path} row {number} is longer than max_row_bytes")
            yield "\n"
        else:
            yield line_text(line, path=path, row=number, offset=offset, reject=reject) or "\n"
