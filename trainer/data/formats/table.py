"""Records of a source: files -> rows (a reader each format) -> fields under our names -> checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from trainer.config.sections.examples import FormatName, RecordsSource
from trainer.data.formats import columns, detect, values
from trainer.data.formats.delimited import csv_rows, tsv_rows
from trainer.data.formats.jsonl import jsonl_rows
from trainer.data.formats.parquet import parquet_rows
from trainer.data.formats.rows import ANY, Reader, Reject, Row, Wanted
from trainer.data.sources import Rejected
from trainer.errors import DataError
from trainer.records.record import Record
from trainer.records.store_lookup import expanded

READERS: dict[FormatName, Reader] = {
    "jsonl": jsonl_rows,
    "csv": csv_rows,
    "tsv": tsv_rows,
    "parquet": parquet_rows,
}


@dataclass(frozen=True)
class Found:
    """What a source turned out to be."""

    format: FormatName
    layout: columns.Layout

    def said(self) -> str:
        """For people: "csv: text <- sentence (detected), label <- label"."""
        return f"{self.format}: {self.layout.said()}"


def records(source: RecordsSource, *, rejected: Rejected, wanted: Wanted = ANY) -> Iterator[Record]:
    """Every example in an order that depends on the settings alone, in bounded memory.

    `wanted`: the fields a task takes; without it all columns come under their own names.
    Raises: DataError naming file and row, for everything that is not as promised. Under the policy
    `skip`, what is wrong with one row is counted in `rejected` instead.
    """
    rejected.policy = source.on_bad_line
    _, rows = _rows(source, rejected.add)
    layout: columns.Layout | None = None
    for row in rows:
        if layout is None:
            layout = columns.layout_of(row, source.columns, wanted)
        try:
            fields = values.checked(columns.fields_of(row, layout, wanted), row)
        except DataError as e:
            rejected.add(str(e))
            continue
        yield Record(fields, row.file, row.row)


def found(source: RecordsSource, *, wanted: Wanted = ANY) -> Found:
    """What would be read, by a look at the first good row.

    Raises: DataError as `records` does; also if there is no row at all.
    """
    format, rows = _rows(source, lambda _: None)
    first = next(itertools.islice(rows, 1), None)
    if first is None:
        raise DataError(f"{', '.join(source.paths)}: there is not one good row to read")
    return Found(format, columns.layout_of(first, source.columns, wanted))


def _rows(source: RecordsSource, reject: Reject) -> tuple[FormatName, Iterator[Row]]:
    files = expanded(source.paths)
    format = detect.format_of(source, files)
    reader = READERS[format]
    return format, itertools.chain.from_iterable(reader(source, path, reject) for path in files)
