"""A text with two marked places -> ids with a marker before and behind each, and a class.

Source: Baldini Soares et al. 2019, "Matching the Blanks", section 3.1 (entity markers); Zhou and
Chen 2022, "An Improved Baseline", section 2.2 (marks of punctuation, which need no new tokens).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config.sections.encodings import RelationSettings
from trainer.data.encodings.base import EXAMPLES, inputs_column
from trainer.data.encodings.example import Example, integers
from trainer.data.encodings.labels import LabelSet, label_name
from trainer.data.formats.rows import Wanted
from trainer.data.task_tokenizer import Encoded, TaskTokenizer
from trainer.errors import DataError
from trainer.records.example_store import Column
from trainer.records.record import Record

_TAGGED = re.compile(r"<(/?)e([12])>")  # SemEval-2010 task 8


@dataclass(frozen=True)
class _Marked:
    """A text, and characters [begin, end) of the two entities in it."""

    text: str
    head: tuple[int, int]
    tail: tuple[int, int]


class RelationEncoding:
    """Places: {"start", "end"} or [start, end) in characters of `text`, or in `tokens`; or the
    text holds <e1>...</e1> and <e2>...</e2>. `entities` are positions of the opening markers."""

    terms = EXAMPLES

    def __init__(
        self,
        settings: RelationSettings,
        tokenizer: TaskTokenizer,
        *,
        labels: Sequence[str],
        row_tokens: int,
    ) -> None:
        self._markers = settings.markers
        self._tokenizer = tokenizer
        self._labels = LabelSet(labels)
        self._row_tokens = row_tokens

    @property
    def wanted(self) -> Wanted:
        return Wanted(required=("label",), optional=("text", "tokens", "head", "tail"))

    @property
    def columns(self) -> tuple[Column, ...]:
        tokenizer = self._tokenizer
        return (
            inputs_column(tokenizer.vocab_size, padding_id=tokenizer.padding_id),
            Column("segments", "uint8", "T"),
            Column("entities", "int32", "E", width=2),
            Column("classes", "int32", "E"),
        )

    def labels_of(self, record: Record) -> Sequence[str]:
        return [label_name(record.fields["label"])]

    def encode(self, record: Record) -> Sequence[Example]:
        marked = _marked(record)
        number = self._labels.number(record.fields["label"], record)
        text, places = self._with_markers(marked)
        found = self._tokenizer.encode(text, length=self._row_tokens)
        at = [_token_at(found, place, record, self._row_tokens) for place in places]
        arrays = {
            "inputs": integers(found.ids),
            "segments": integers(found.segments),
            "entities": integers(at[:2]),
            "classes": integers([number]),
        }
        return [Example(arrays, record.file, record.row, was_cut=found.was_cut)]

    def _with_markers(self, marked: _Marked) -> tuple[str, list[int]]:
        """(the text with markers, where the opening ones begin and where the entities end)."""
        one, one_end, two, two_end = self._markers
        (a, b), (c, d) = marked.head, marked.tail
        # (place, closing before opening where entities touch, marker, number)
        edges = [
            (a, 1, f"{one} ", 0), (b, 0, f" {one_end}", 2),
            (c, 1, f"{two} ", 1), (d, 0, f" {two_end}", 3),
        ]  # fmt: skip
        made, at, places = "", 0, [0, 0, 0, 0]
        for place, _, marker, number in sorted(edges):
            made += marked.text[at:place]
            places[number] = len(made) if number < 2 else len(made) - 1
            made, at = made + marker, place
        return made + marked.text[at:], places


def _marked(record: Record) -> _Marked:
    """Raises: DataError naming the row, if the places are missing, empty, outside or overlap."""
    text, tokens = record.fields.get("text"), record.fields.get("tokens")
    if "head" not in record.fields or "tail" not in record.fields:
        marked = _from_tags(text or "", record)
    elif tokens is not None:
        marked = _from_tokens(tokens, record)
    elif text is not None:
        places = (_place(record, name, len(text), "characters") for name in ("head", "tail"))
        head, tail = places
        marked = _Marked(text, head, tail)
    else:
        raise DataError(f"{record.place} has neither text nor tokens")
    head, tail = (_without_spaces(marked.text, place) for place in (marked.head, marked.tail))
    for name, (begin, end) in (("head", head), ("tail", tail)):
        if begin >= end:
            raise DataError(f"{record.place}: '{name}' marks nothing; mark its words")
    if head[0] < tail[1] and tail[0] < head[1]:
        raise DataError(
            f"{record.place}: the head and the tail overlap; mark two places apart, or leave the "
            "row out"
        )
    return _Marked(marked.text, head, tail)


def _without_spaces(text: str, place: tuple[int, int]) -> tuple[int, int]:
    begin, end = place
    while begin < end and text[begin].isspace():
        begin += 1
    while begin < end and text[end - 1].isspace():
        end -= 1
    return begin, end


def _from_tags(text: str, record: Record) -> _Marked:
    pieces = _TAGGED.split(text)  # text, slash, number, text, slash, number, ...
    places: dict[tuple[str, str], int] = {}
    plain = pieces[0]
    for slash, number, piece in zip(pieces[1::3], pieces[2::3], pieces[3::3], strict=True):
        places[number, slash] = len(plain)
        plain += piece
    if len(places) != 4 or len(pieces) != 13:
        raise DataError(
            f"{record.place} has neither head and tail, nor <e1>...</e1> and <e2>...</e2> in its "
            "text, once each"
        )
    head, tail = ((places[n, ""], places[n, "/"]) for n in "12")
    return _Marked(plain, head, tail)


def _from_tokens(tokens: list[str], record: Record) -> _Marked:
    begins, text = [], ""
    for token in tokens:
        text += " " if text else ""
        begins.append(len(text))
        text += token
    found = []
    for name in ("head", "tail"):
        first, end = _place(record, name, len(tokens), "tokens")
        found.append((begins[first], begins[end - 1] + len(tokens[end - 1])))
    return _Marked(text, found[0], found[1])


def _place(record: Record, name: str, length: int, unit: str) -> tuple[int, int]:
    value: Any = record.fields[name]
    pair = [value.get("start"), value.get("end")] if isinstance(value, dict) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(type(p) is int for p in pair):
        raise DataError(
            f"{record.place}: '{name}' is no start and end: {str(value)[:60]}; write [start, end) "
            f"in {unit}, counted from 0"
        )
    begin, end = pair
    if not 0 <= begin < end <= length:
        raise DataError(
            f"{record.place}: '{name}' [{begin}, {end}) is empty or not within the {length} {unit} "
            "that there are; write [start, end), counted from 0"
        )
    return begin, end


def _token_at(found: Encoded, place: int, record: Record, row_tokens: int) -> int:
    for number, (begin, end) in enumerate(found.offsets):
        if found.sequences[number] is not None and begin <= place < end:
            return number
    raise DataError(
        f"{record.place}: an entity stands beyond the {row_tokens} tokens of a row; raise "
        "data.sequence_length, or leave such rows out"
    )
