"""One JSON object a line, plain or gzipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from trainer.config.sections.examples import RecordsSource
from trainer.data.file_sources import byte_lines
from trainer.data.formats.rows import Reject, Row, checked_start, line_text, opened


def jsonl_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    """Raises: DataError if the file cannot be read; a bad line is rejected with its number."""
    with opened(path) as stream:
        if not checked_start(stream, path, reject=reject):
            return
        for number, offset, line in byte_lines(stream, limit=source.max_row_bytes):
            where = f"{path} row {number}"
            if line is None:
                reject(f"{where} is longer than max_row_bytes={source.max_row_bytes:,}")
                continue
            if not line.strip():
                continue
            text = line_text(line, path=path, row=number, offset=offset, reject=reject)
            if not text:
                continue
            try:
                values = json.loads(text)
            except (ValueError, RecursionError) as e:
                reject(f"{where} is not JSON ({e})")
                continue
            if not isinstance(values, dict):
                reject(f"{where} is {type(values).__name__}, not an object with named fields")
                continue
            yield Row(values, str(path), number)
