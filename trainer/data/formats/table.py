"""Records of a source: files -> rows (a reader each format) -> fields under our names -> checks."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.config.sections.examples import FormatName, RecordsSource
from trainer.data.formats import chat, columns, detect, values
from trainer.data.formats.conll import conll_rows
from trainer.data.formats.delimited import csv_rows, tsv_rows
from trainer.data.formats.hub import hub_rows
from trainer.data.formats.json_array import json_rows
from trainer.data.formats.jsonl import jsonl_rows
from trainer.data.formats.parallel import pairs_of, parallel_rows
from trainer.data.formats.parquet import parquet_rows
from trainer.data.formats.rows import ANY, Reader, Reject, Row, Wanted
from trainer.data.formats.squad import squad_rows
from trainer.data.sources import Rejected
from trainer.errors import DataError
from trainer.records.record import Record
from trainer.records.store_lookup import expanded

READERS: dict[FormatName, Reader] = {
    "jsonl": jsonl_rows,
    "json": json_rows,
    "csv": csv_rows,
    "tsv": tsv_rows,
    "parquet": parquet_rows,
    "conll": conll_rows,
    "squad": squad_rows,
}


@dataclass(frozen=True)
class Found:
    """What a source turned out to be."""

    format: FormatName
    chat: str
    layout: columns.Layout

    def said(self) -> str:
        """For people: "csv: text <- sentence (detected), label <- label"."""
        kind = f" of {self.chat} chats" if self.chat else ""
        return f"{self.format}{kind}: {self.layout.said()}"


def records(source: RecordsSource, *, rejected: Rejected, wanted: Wanted = ANY) -> Iterator[Record]:
    """Every example in an order that depends on the settings alone, in bounded memory.

    `wanted`: the fields a task takes; without it all columns come under their own names.
    Raises: DataError naming file and row, for everything that is not as promised. Under the policy
    `skip`, what is wrong with one row is counted in `rejected` instead.
    """
    rejected.policy = source.on_bad_line
    _, rows = _rows(source, rejected.add)
    given = source.columns
    if "messages" in wanted.every:
        rows, given = chat.as_chats(rows, source, rejected.add), chat.left_to_map(given)
    layout: columns.Layout | None = None
    for row in rows:
        layout = layout or columns.layout_of(row, given, wanted, source=rejected.source)
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
    row = next(rows, None)
    if row is None:
        raise DataError(f"{', '.join(source.paths)}: there is not one good row to read")
    if "messages" not in wanted.every:
        return Found(format, "", columns.layout_of(row, source.columns, wanted))
    kind = chat.chat_kind(row, source)
    made = chat.with_messages(row, kind, source.columns)
    return Found(format, kind, columns.layout_of(made, chat.left_to_map(source.columns), wanted))


def _rows(source: RecordsSource, reject: Reject) -> tuple[FormatName, Iterator[Row]]:
    is_data_set = source.format == "auto" and detect.is_data_set(source.paths[0])
    if is_data_set or source.format == "datasets":
        return "datasets", _chain(hub_rows(source, name, reject) for name in source.paths)
    files = expanded(source.paths)
    format = detect.format_of(source, files)
    if format == "parallel":
        return format, _parallel(source, files, reject)
    reader = READERS[format]
    return format, _chain(reader(source, path, reject) for path in files)


def _parallel(source: RecordsSource, files: list[Path], reject: Reject) -> Iterator[Row]:
    if not source.target_paths:
        raise DataError("parallel texts need target_paths: the files of the other language")
    pairs = pairs_of(files, expanded(source.target_paths))
    return _chain(parallel_rows(source, one, other, reject) for one, other in pairs)


def _chain(readers: Iterator[Iterator[Row]]) -> Iterator[Row]:
    return itertools.chain.from_iterable(readers)
