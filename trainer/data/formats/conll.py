"""CoNLL columns: a token a line, sentences between blank lines.

A sentence is one row whose values are its columns, under their numbers from 1 and, from the end,
from -1. `tokens` is the first and `tags` the last, unless `columns` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.config.sections.examples import RecordsSource
from trainer.data.file_sources import byte_lines
from trainer.data.formats.rows import Reject, Row, checked_start, line_text, opened

_DOCUMENT = "-DOCSTART-"  # CoNLL-2003 begins documents with it
_NOT_A_WORD = re.compile(r"\d+[-.]\d+\t")  # CoNLL-U: several words in one, or none at all
_TAG = re.compile(r"O|[BIOESLUM]-.+")


@dataclass
class _Sentence:
    start: int = 0
    lines: list[list[str]] = field(default_factory=list)
    bad: str = ""


def conll_rows(source: RecordsSource, path: Path, reject: Reject) -> Iterator[Row]:
    """Raises: DataError if the file cannot be read. A ragged line rejects its sentence."""
    with opened(path) as stream:
        if not checked_start(stream, path, reject=reject):
            return
        sentence, width = _Sentence(), 0
        for number, offset, raw in byte_lines(stream, limit=source.max_row_bytes):
            text = _line(raw, path, number=number, offset=offset, reject=reject)
            if not text.strip():
                yield from _finished(sentence, path, reject)
                sentence = _Sentence()
                continue
            if not sentence.lines and _is_no_token(text, source.comment):
                continue
            cells = text.split("\t") if "\t" in text else text.split()
            width = width or len(cells)
            sentence.start = sentence.start or number
            sentence.lines.append(cells)
            if len(cells) != width and not sentence.bad:
                have = f"{len(cells)} columns, the lines before it have {width}"
                sentence.bad = f"{path} row {number} is ragged: it has {have}"
        yield from _finished(sentence, path, reject)


def _finished(sentence: _Sentence, path: Path, reject: Reject) -> Iterator[Row]:
    if sentence.bad:
        reject(sentence.bad)
    elif sentence.lines:
        columns = [list(column) for column in zip(*sentence.lines, strict=True)]
        width = len(columns)
        values = {"tokens": columns[0]}
        if width > 1:
            values["tags"] = columns[-1]
        for index, column in enumerate(columns):
            values[str(index + 1)] = values[str(index - width)] = column
        yield Row(values, str(path), sentence.start)


def _line(raw: bytes | None, path: Path, *, number: int, offset: int, reject: Reject) -> str:
    if raw is None:
        reject(f"{path} row {number} is longer than max_row_bytes")
        return ""
    return (line_text(raw, path=path, row=number, offset=offset, reject=reject) or "").rstrip(
        "\r\n"
    )


def _is_no_token(text: str, comment: str) -> bool:
    """Before the first token of a sentence. "# O" is a token, "# text = ..." is none."""
    if text.startswith(_DOCUMENT) or _NOT_A_WORD.match(text):
        return True
    if not comment or not text.startswith(comment):
        return False
    return "\t" not in text and not _TAG.fullmatch(text.split()[-1])
