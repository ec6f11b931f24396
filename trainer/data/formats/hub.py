"""Rows of a `datasets` folder or a hub name; the vendor is behind data/datasets_source.py."""

from __future__ import annotations

from collections.abc import Iterator

from trainer.config.sections.data import DatasetsSource
from trainer.config.sections.examples import RecordsSource
from trainer.data.datasets_source import dataset_rows
from trainer.data.formats.rows import Reject, Row


def hub_rows(source: RecordsSource, name: str, reject: Reject) -> Iterator[Row]:
    """In the data set's own order; numbers of classes become their names.

    Raises: DataError if it cannot be loaded.
    """
    where = DatasetsSource(
        kind="datasets",
        path=name,
        config_name=source.config_name,
        split=source.split,
        streaming=source.streaming,
    )
    number = 0
    for number, values in enumerate(dataset_rows(where), 1):
        yield Row(values, f"{name} ({source.split})", number)
    if number == 0:
        reject(f"data set {name} has no rows in its split '{source.split}'")
