"""What the value of each field must be, checked once for every format."""

from __future__ import annotations

from typing import Any

from trainer.data.file_sources import is_text
from trainer.data.formats.answers import with_answers
from trainer.data.formats.preference import with_pair
from trainer.data.formats.rows import Row
from trainer.errors import DataError

TEXTS = ("text", "text_pair", "question", "context", "source", "target")


def checked(fields: dict[str, Any], row: Row) -> dict[str, Any]:
    """The fields as encodings rely on them.

    Raises: DataError naming file and row, for a field that is empty or of the wrong kind.
    """
    for name in TEXTS:
        if name in fields:
            _text(fields[name], name, row)
    if "label" in fields:
        fields["label"] = _label(fields["label"], "label", row)
    if "labels" in fields:
        fields["labels"] = [
            _label(v, "labels", row) for v in _list(fields["labels"], "labels", row)
        ]
    if "tokens" in fields:
        _tokens(fields, row)
    if "context" in fields and "answers" in fields:
        fields = with_answers(fields, row)
    if "chosen" in fields and "rejected" in fields:
        fields = with_pair(fields, row)
    return fields


def _text(value: Any, name: str, row: Row) -> None:
    if not isinstance(value, str):
        raise DataError(f"{row.where}: '{name}' is {type(value).__name__}, not text")
    if not value.strip():
        raise DataError(f"{row.where}: '{name}' is empty")
    if not is_text(value):
        raise DataError(f"{row.where}: '{name}' holds half a surrogate pair, which is no text")


def _label(value: Any, name: str, row: Row) -> str | int | float:
    if isinstance(value, str):
        _text(value, name, row)
        return value.strip()
    if isinstance(value, int | float):
        return value
    raise DataError(f"{row.where}: '{name}' is {type(value).__name__}, not a name or a number")


def _tokens(fields: dict[str, Any], row: Row) -> None:
    tokens = _list(fields["tokens"], "tokens", row)
    if not tokens:
        raise DataError(f"{row.where}: 'tokens' is empty")
    for number, token in enumerate(tokens, 1):
        _text(token, f"tokens' number {number}", row)
    if "tags" in fields:
        tags = _list(fields["tags"], "tags", row)
        if len(tags) != len(tokens):
            raise DataError(f"{row.where} has {len(tokens)} tokens and {len(tags)} tags")
        fields["tags"] = [_label(tag, "tags", row) for tag in tags]


def _list(value: Any, name: str, row: Row) -> list[Any]:
    if not isinstance(value, list):
        raise DataError(f"{row.where}: '{name}' is {type(value).__name__}, not a list")
    return value
