"""Held-out examples by a column of their file, which need not have been prepared with them.

A store knows the file and the row of each of its examples: the groups are read where they came
from. Shapes: K rows, N examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from trainer.batch import ExampleBatch
from trainer.config.sections.example_data import ExamplesSection
from trainer.data.encodings.base import PLACES
from trainer.data.encodings.labels import label_name
from trainer.data.example_reader import ExampleReader
from trainer.data.example_store import ExampleSplit, ExampleStore
from trainer.data.formats.rows import Wanted
from trainer.data.formats.table import records
from trainer.data.order import Indices
from trainer.data.row_shape import RowShape, StreamSource
from trainer.data.sources import Rejected
from trainer.data.stream import held_out_order
from trainer.data.table import open_sources
from trainer.errors import DataError, Refused
from trainer.plan import RunPlan

MOST_GROUPS = 200
_NONE = "(none)"  # of a row whose cell is empty
Place = tuple[str, int]


def held_out_groups(plan: RunPlan, column: str, *, rows: int) -> dict[str, list[ExampleBatch]]:
    """Batches of the examples in the first `rows` held-out rows, by what their file has under
    `column`; the groups by name. Each example is a row of its own, whatever shared it before.

    Raises: Refused for text, and for a column that makes no groups; DataError if a file is gone,
    has no such column or is another one by now.
    """
    section = plan.config.data
    if not isinstance(section, ExamplesSection):
        raise Refused(f"--by {column}: text has no columns; it groups labelled examples")
    sources = open_sources(plan)
    alone = [StreamSource(s.name, _Alone.of(s.store), s.weight) for s in sources]
    source_K, row_K = held_out_order(sources, [s.store.held_out.num_rows for s in sources], rows)
    numbers: dict[str, list[tuple[int, int]]] = {}  # group -> (source, example)
    for number, source in enumerate(sources):
        examples_N, _ = source.store.held_out.examples_of(row_K[source_K == number])
        places = _places(source.store, examples_N)
        groups = _groups(section, source.name, column=column, wanted=set(places))
        for example, place in zip(examples_N.tolist(), places, strict=True):
            numbers.setdefault(groups[place], []).append((number, example))
        if len(numbers) > MOST_GROUPS:
            what = f"--by {column}: more than {MOST_GROUPS} groups; is that the column you mean?"
            raise Refused(what)
    return {group: _batches(plan, alone, numbers[group]) for group in sorted(numbers)}


@dataclass(frozen=True)
class _Alone:
    """A store whose rows are its examples."""

    store: ExampleStore
    train: _AloneSplit
    held_out: _AloneSplit

    @staticmethod
    def of(store: ExampleStore) -> _Alone:
        return _Alone(store, _AloneSplit(store.train), _AloneSplit(store.held_out))

    @property
    def manifest(self) -> object:
        return self.store.manifest


class _AloneSplit:
    def __init__(self, split: ExampleSplit) -> None:
        self.num_rows = split.num_examples
        self.has, self.values = split.has, split.values

    def examples_of(self, rows_K: Indices) -> tuple[Indices, Indices]:
        return rows_K, np.ones(len(rows_K), dtype=np.int64)


def _batches(
    plan: RunPlan, sources: Sequence[StreamSource[_Alone]], numbers: list[tuple[int, int]]
) -> list[ExampleBatch]:
    size = plan.config.batch.micro_batch_size
    shape = RowShape(
        global_batch_size=size,
        micro_batch_size=size,
        sequence_length=plan.config.data.sequence_length,
        packing=False,
    )
    reader = ExampleReader(sources, shape)  # type: ignore[arg-type]
    source_K, row_K = np.array(numbers, dtype=np.int64).T
    sizes = [min(size, len(numbers) - begin) for begin in range(0, len(numbers), size)]
    samples = np.arange(len(numbers), dtype=np.int64)
    return reader.batches("held_out", source_K, row_K, samples=samples, sizes=sizes)


def _places(store: ExampleStore, examples_N: Indices) -> list[Place]:
    values, _ = store.held_out.values(PLACES.name, examples_N)
    files = store.manifest.files
    return [(files[file], row) for file, row, _ in values.reshape(-1, PLACES.width).tolist()]


def _groups(
    section: ExamplesSection, name: str, *, column: str, wanted: set[Place]
) -> dict[Place, str]:
    """Of the places that are wanted. Raises: DataError for one that the files do not have."""
    source = section.held_out.get(name) or section.sources[name]
    read = source.model_copy(update={"columns": {"group": column}, "on_bad_line": "skip"})
    found: dict[Place, str] = {}
    for record in records(read, rejected=Rejected(source=name), wanted=Wanted(optional=("group",))):
        place = (record.file, record.row)
        if place in wanted:
            value = record.fields.get("group")
            found[place] = _NONE if value in (None, "") else label_name(value)
    for file, row in sorted(wanted - found.keys()):
        raise DataError(
            f"{file} row {row} was held out and is not there any more, or has no '{column}'; bring "
            "the file back as it was, or name another column"
        )
    return found
