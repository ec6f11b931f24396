"""BIO and its relatives: checked, and turned into each other through spans.

Source: Ratinov and Roth 2009, section 3 (BILOU); Ramshaw and Marcus 1995 (IOB1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trainer.errors import DataError

Given = Literal["bio", "iob1", "bioes", "plain"]
Scheme = Literal["bio", "bioes"]
OUTSIDE = "O"
_LETTERS = {"bio": "BI", "iob1": "BI", "bioes": "BIESLUM"}
_OTHERWISE = {"bio": " (task.tags=iob1 lets I- begin)"}
_SAME = {"L": "E", "U": "S", "M": "I"}  # BILOU's and BMES's names of BIOES's letters


@dataclass(frozen=True)
class Span:
    """Tokens [begin, end) that one entity of `kind` covers."""

    begin: int
    end: int
    kind: str


def spans_of(tags: Sequence[str], given: Given, *, where: str) -> list[Span]:
    """Raises: DataError naming the row and the token whose tag cannot stand where it does."""
    found: list[Span] = []
    begin, kind = -1, ""  # the span that is open
    for number, tag in enumerate(tags):
        letter, of = _parts(tag, given, where=f"{where}, token {number + 1}")
        if begin >= 0 and _ends_before(letter, of, kind, given):
            found.append(Span(begin, number, kind))
            if given == "bioes":
                raise _misplaced(tags, number, where, "an entity is still open before it")
            begin = -1
        if letter == OUTSIDE:
            continue
        if begin < 0:
            if not _may_begin(letter, given):
                why = f"no {of} is open before it"
                raise _misplaced(tags, number, where, why + _OTHERWISE.get(given, ""))
            begin, kind = number, of
        if letter in "ES":
            found.append(Span(begin, number + 1, kind))
            begin = -1
    if begin >= 0:
        if given == "bioes":
            raise _misplaced(tags, len(tags) - 1, where, "the sentence ends inside of an entity")
        found.append(Span(begin, len(tags), kind))
    return found


def tags_of(spans: Sequence[Span], length: int, scheme: Scheme) -> list[str]:
    tags = [OUTSIDE] * length
    for span in spans:
        last = span.end - 1
        for place in range(span.begin, span.end):
            tags[place] = f"{'B' if place == span.begin else 'I'}-{span.kind}"
        if scheme == "bioes":
            tags[last] = f"{'S' if last == span.begin else 'E'}-{span.kind}"
    return tags


def _parts(tag: str, given: Given, *, where: str) -> tuple[str, str]:
    if tag == OUTSIDE:
        return OUTSIDE, ""
    letter, dash, kind = tag.partition("-")
    if tag.isdigit():
        raise DataError(
            f"{where}: the tag {tag!r} is a number; {given} needs the names, as in B-PER "
            "(task.tags=plain takes any)"
        )
    if letter not in tuple(_LETTERS[given]) or not dash or not kind:
        raise DataError(
            f"{where}: the tag {tag!r} is none of {given}: it needs {OUTSIDE}, or one of "
            f"{', '.join(_LETTERS[given])} and a kind, as in B-PER (task.tags=plain takes any)"
        )
    return _SAME.get(letter, letter), kind


def _ends_before(letter: str, of: str, kind: str, given: Given) -> bool:
    """Whether the open span ends before this token."""
    return letter in (OUTSIDE, "B", "S") or of != kind


def _may_begin(letter: str, given: Given) -> bool:
    return letter in "BS" or (given == "iob1" and letter == "I")


def _misplaced(tags: Sequence[str], number: int, where: str, why: str) -> DataError:
    before = f" after {tags[number - 1]!r}" if number else ""
    return DataError(
        f"{where}, token {number + 1}: the tag {tags[number]!r}{before} cannot stand there: {why}; "
        "correct it"
    )
