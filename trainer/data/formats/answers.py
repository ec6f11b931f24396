"""Answers of extractive QA: [{"text", "start"}], each held against its context."""

from __future__ import annotations

from typing import Any

from trainer.data.formats.rows import Row
from trainer.errors import DataError


def with_answers(fields: dict[str, Any], row: Row) -> dict[str, Any]:
    """`answers` in one form, whichever the file has; none means that there is no answer.

    SQuAD's list of {"text", "answer_start"}, Hugging Face's {"text": [...], "answer_start": [...]},
    or a text alone that stands in the context once.
    Raises: DataError naming file and row, for an answer that is not where it says.
    """
    context = fields["context"]
    given = [_placed(one, context, row) for one in _listed(fields["answers"], row)]
    return fields | {"answers": given}


def _listed(value: Any, row: Row) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        return [{"text": value}] if value.strip() else []
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, starts = value["text"], value.get("answer_start")
        if starts is None:
            return [{"text": text} for text in texts]
        if isinstance(starts, list) and len(starts) == len(texts):
            pairs = zip(texts, starts, strict=True)
            return [{"text": text, "answer_start": start} for text, start in pairs]
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return [value]
    raise DataError(f"{row.where}: 'answers' is no list of texts with their places")


def _placed(one: Any, context: str, row: Row) -> dict[str, Any]:
    one = {"text": one} if isinstance(one, str) else one
    text = one.get("text") if isinstance(one, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{row.where}: an answer has no text")
    start = one.get("answer_start", one.get("start"))
    count = context.count(text)
    if start is None:
        if count == 1:
            return {"text": text, "start": context.index(text)}
        where = "is not in the context" if not count else f"is in the context {count} times"
        hint = "" if not count else "; its answer_start is needed"
        raise DataError(f"{row.where}: the answer {_short(text)} {where}{hint}")
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(f"{row.where}: the answer_start of {_short(text)} is no whole number")
    if start < 0 or context[start : start + len(text)] != text:
        where = f"it is at {context.index(text)}" if count else "it is nowhere in the context"
        raise DataError(
            f"{row.where}: the answer {_short(text)} is not in the context at {start}; {where}"
        )
    return {"text": text, "start": start}


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
