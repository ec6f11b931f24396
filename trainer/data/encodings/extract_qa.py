"""A question and its context -> windows of both, and where in each the answer stands.

`spans`: first and last token of the answer, from the example's own first token; (0, 0), the first
special token, where the window does not hold it, as Hugging Face's examples have it. `begins` and
`ends`: the characters of the context that a token stands for, -1 elsewhere: an answer's text is
context[begins[first]:ends[last]].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config.sections.encodings import QaSettings
from trainer.data.encodings.base import EXAMPLES, TEXT, inputs_column
from trainer.data.encodings.example import Example, integers, noted
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import Encoded, TaskTokenizer
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record

CONTEXT = 1  # the number of the second text of a pair
NOWHERE = (0, 0)


class QaEncoding:
    terms = EXAMPLES

    def __init__(self, settings: QaSettings, tokenizer: TaskTokenizer, *, row_tokens: int) -> None:
        self._stride = settings.stride
        self._no_answer = settings.no_answer
        self._tokenizer = tokenizer
        self._row_tokens = row_tokens

    @property
    def wanted(self) -> Wanted:
        return Wanted(required=("question", "context", "answers"), optional=("id",))

    @property
    def columns(self) -> tuple[Column, ...]:
        tokenizer = self._tokenizer
        return (
            inputs_column(tokenizer.vocab_size, padding_id=tokenizer.padding_id),
            Column("segments", "uint8", "T"),
            Column("begins", "int32", "T", fill=-1),
            Column("ends", "int32", "T", fill=-1),
            Column("spans", "int32", "E", width=2),
            TEXT,
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return ()

    def encode(self, record: Record) -> Sequence[Example]:
        """As many examples as there are windows; only held-out ones need the `text`."""
        fields = record.fields
        answers = fields["answers"]
        if not answers and not self._no_answer:
            raise DataError(
                f"{record.place} has no answer, and task.no_answer=false says that every question "
                "has one; give it one, or take task.no_answer=true"
            )
        windows = self._windows(record)
        spans = [_span(window, answers[0]) if answers else NOWHERE for window in windows]
        lost = bool(answers) and all(span == NOWHERE for span in spans)
        text = {
            "id": str(fields.get("id") or record.place),
            "record": record.place,
            "windows": len(windows),
            "context": fields["context"],
            "answers": [answer["text"] for answer in answers],
        }
        made = []
        for number, (window, span) in enumerate(zip(windows, spans, strict=True)):
            begins, ends = _places(window)
            off = span != NOWHERE and not _is_exact(window, span, answers[0])
            notes = noted(answer_lost=lost and number == 0, answer_inexact=off)
            arrays = {
                "inputs": integers(window.ids),
                "segments": integers(window.segments),
                "begins": integers(begins),
                "ends": integers(ends),
                "spans": integers(span),
            }
            said = {**text, "window": number}
            made.append(Example(arrays, record.file, record.row, said, notes=notes))
        return made

    def _windows(self, record: Record) -> list[Encoded]:
        question, context = record.fields["question"].strip(), record.fields["context"]
        room = self._row_tokens - len(self._tokenizer.encode(question, "x").ids) + 1
        if room <= self._stride:
            raise DataError(
                f"{record.place}: the question leaves {max(room, 0)} of {self._row_tokens} tokens "
                f"for its context, and windows share {self._stride}; raise data.sequence_length, "
                "or lower task.stride"
            )
        return self._tokenizer.windows(
            question, context, length=self._row_tokens, stride=self._stride
        )


def _span(window: Encoded, answer: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens of the window that cover the whole answer; NOWHERE if it does not hold all of it."""
    begin = answer["start"]
    end = begin + len(answer["text"])
    first = last = -1
    for number, (offsets, sequence) in enumerate(
        zip(window.offsets, window.sequences, strict=True)
    ):
        if sequence != CONTEXT or offsets[0] == offsets[1]:
            continue
        if first < 0 and offsets[0] <= begin < offsets[1]:
            first = number
        if offsets[0] < end <= offsets[1]:
            last = number
    return (first, last) if 0 <= first <= last else NOWHERE


def _is_exact(window: Encoded, span: tuple[int, int], answer: Mapping[str, Any]) -> bool:
    begin = answer["start"]
    at = window.offsets[span[0]][0], window.offsets[span[1]][1]
    return bool(at == (begin, begin + len(answer["text"])))


def _places(window: Encoded) -> tuple[list[int], list[int]]:
    inside = [sequence == CONTEXT for sequence in window.sequences]
    begins = [o[0] if i else -1 for o, i in zip(window.offsets, inside, strict=True)]
    ends = [o[1] if i else -1 for o, i in zip(window.offsets, inside, strict=True)]
    return begins, ends
