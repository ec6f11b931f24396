"""Rows of Parquet files; the vendor is behind trainer/data/parquet_source.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.config.sections.examples import RecordsSource
from trainer.data.formats.rows import Reject, Row
from trainer.data.parquet_source import parquet_rows as rows_of


def parquet_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    """Raises: DataError if the file is not Parquet."""
    number = 0
    for number, values in enumerate(rows_of(path), 1):
        yield Row(values, str(path), number)
    if number == 0:
        reject(f"{path} is empty")
