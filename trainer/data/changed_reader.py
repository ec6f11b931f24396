"""Rows that a task changes before they are trained on: masked text, say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from trainer.data.order import Indices
from trainer.data.stream import Reader
from trainer.records.token_store import Split

# (micro-batch, split) -> micro-batch: a pure function of the rows and their sample indices, so that
# ranks, resumes and the thread that reads ahead make no difference.
Change = Callable[[Any, Split], Any]


class ChangedReader:
    """What stands behind `Stream` (see `Reader` there)."""

    def __init__(self, reader: Reader[Any], change: Change) -> None:
        self._reader = reader
        self._change = change

    def num_rows(self, split: Split) -> list[int]:
        return self._reader.num_rows(split)

    def first_document(self, source: int, row: int) -> int:
        return self._reader.first_document(source, row)

    def batches(
        self,
        split: Split,
        source_K: Indices,
        row_K: Indices,
        *,
        samples: Indices,
        sizes: Sequence[int],
    ) -> list[Any]:
        found = self._reader.batches(split, source_K, row_K, samples=samples, sizes=sizes)
        return [self._change(batch, split) for batch in found]
