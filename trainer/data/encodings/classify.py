"""A text, or a pair of texts -> ids and a class, several classes, or a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from trainer.config.sections.tasks import ClassifyTask
from trainer.data.encodings.base import EXAMPLES, inputs_column
from trainer.data.encodings.example import Array, Example, integers
from trainer.data.encodings.labels import LabelSet, label_name
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import TaskTokenizer
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record

_LABEL = {"single": "label", "multi": "labels", "regression": "label"}
_LARGEST = float(np.finfo(np.float32).max)  # what a target is stored as


class ClassifyEncoding:
    """`labels`: in the order of the model's outputs; unused by regression."""

    terms = EXAMPLES

    def __init__(
        self,
        task: ClassifyTask,
        tokenizer: TaskTokenizer,
        *,
        labels: Sequence[str],
        row_tokens: int,
    ) -> None:
        self._task = task
        self._tokenizer = tokenizer
        self._labels = LabelSet(labels)
        self._row_tokens = row_tokens

    @property
    def wanted(self) -> Wanted:
        label: Any = _LABEL[self._task.answers]
        return Wanted(required=("text", label), optional=("text_pair",))

    @property
    def columns(self) -> tuple[Column, ...]:
        tokenizer = self._tokenizer
        return (
            inputs_column(tokenizer.vocab_size, padding_id=tokenizer.padding_id),
            Column("segments", "uint8", "T"),
            self._answers_column(),
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        if self._task.answers == "regression":
            return ()
        return [label_name(v) for v in self._given(record)]

    def encode(self, record: Record) -> Sequence[Example]:
        text, pair = record.fields["text"], record.fields.get("text_pair")
        found = self._tokenizer.encode(text, pair, length=self._row_tokens)
        arrays = {
            "inputs": integers(found.ids),
            "segments": integers(found.segments),
            self._answers_column().name: self._answer(record),
        }
        return [Example(arrays, record.file, record.row, was_cut=found.was_cut)]

    def _answers_column(self) -> Column:
        if self._task.answers == "single":
            return Column("classes", "int32", "E")
        width = len(self._labels.names) if self._task.answers == "multi" else 1
        return Column("targets", "float32", "E", width=max(width, 1))

    def _given(self, record: Record) -> list[Any]:
        value = record.fields[_LABEL[self._task.answers]]
        return list(value) if self._task.answers == "multi" else [value]

    def _answer(self, record: Record) -> Array:
        match self._task.answers:
            case "single":
                return integers([self._labels.number(self._given(record)[0], record)])
            case "multi":
                found = np.zeros(len(self._labels.names), dtype=np.float32)
                for value in self._given(record):
                    found[self._labels.number(value, record)] = 1.0
                return found
            case _:
                return np.array([_number(record)], dtype=np.float32)


def _number(record: Record) -> float:
    value = record.fields["label"]
    try:
        found = float(value)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise DataError(
            f"{record.place}: the label {value!r} is no number, and task.answers=regression "
            "predicts numbers; correct the row, or take task.answers=single"
        )
    if abs(found) > _LARGEST:
        raise DataError(
            f"{record.place}: the label {value!r} is more than a 32-bit number holds; correct the "
            "row, or scale all labels"
        )
    return found
