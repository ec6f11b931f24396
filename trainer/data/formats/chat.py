"""Chats as people keep them, all made into OpenAI's messages: role, content, tools fields kept.

messages    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}
sharegpt    {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
alpaca      {"instruction": "...", "input": "...", "output": "...", "history": [[q, a], ...]}
turns       two columns, a question and its answer
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config.sections.examples import ChatName, Columns, FieldName, RecordsSource
from trainer.data.formats import columns
from trainer.data.formats.messages import message, sharegpt_message, tools_of
from trainer.data.formats.rows import Reject, Row, Wanted
from trainer.errors import DataError

_LISTS = ("messages", "conversations", "conversation", "dialog")
_TURNS = Wanted(("source", "target"))
_OWN: tuple[FieldName, ...] = ("messages", "source", "target", "tools")


def as_chats(rows: Iterator[Row], source: RecordsSource, reject: Reject) -> Iterator[Row]:
    """Each row with its `messages` (and `tools`) in OpenAI's form beside what else it has.

    Raises: DataError if the first row does not tell which kind of chat it is; what is wrong with
    one row is rejected.
    """
    kind: ChatName | None = None
    for row in rows:
        kind = kind or chat_kind(row, source)
        try:
            yield with_messages(row, kind, source.columns)
        except DataError as e:
            reject(str(e))


def chat_kind(row: Row, source: RecordsSource) -> ChatName:
    """The setting, or what the keys of a row say. Raises: DataError if they say nothing."""
    if source.chat != "auto":
        return source.chat
    turns = _turns_of(row, source.columns)
    if turns is not None:
        first = turns[0] if isinstance(turns, list) and turns else {}
        return "sharegpt" if isinstance(first, dict) and "from" in first else "messages"
    if {"instruction", "output"} <= set(row.values):
        return "alpaca"
    try:
        columns.layout_of(row, _given(source.columns, ("source", "target")), _TURNS)
    except DataError as e:
        raise DataError(
            f"{e}; a chat has a column of messages (columns.messages=NAME), or a question and its "
            "answer (columns.source=NAME and columns.target=NAME)"
        ) from e
    return "turns"


def with_messages(row: Row, kind: ChatName, given: Mapping[FieldName, Columns]) -> Row:
    """Raises: DataError naming file and row, for a chat that is not as its kind promises."""
    match kind:
        case "alpaca":
            messages = _alpaca(row)
        case "turns":
            messages = _two_turns(row, given)
        case _:
            make = sharegpt_message if kind == "sharegpt" else message
            messages = [make(m, f"{row.where}, message {n}") for n, m in _each(row, given)]
    system = row.values.get("system")
    if isinstance(system, str) and system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    if not any(m["role"] == "assistant" for m in messages):
        raise DataError(f"{row.where}: nobody answers in this chat: it has no assistant's message")
    values = {k: v for k, v in row.values.items() if k not in _OWN}
    values["messages"] = messages
    tools = tools_of(row.values.get(_name(given, "tools")), row.where)
    return Row(values | ({"tools": tools} if tools else {}), row.file, row.row)


def left_to_map(given: Mapping[FieldName, Columns]) -> dict[FieldName, Columns]:
    """The user's columns without those that the messages were made of."""
    return {field: names for field, names in given.items() if field not in _OWN}


def _each(row: Row, given: Mapping[FieldName, Columns]) -> Iterator[tuple[int, Any]]:
    turns = _turns_of(row, given)
    if turns == []:
        raise DataError(f"{row.where}: its chat is empty")
    if not isinstance(turns, list):
        raise DataError(f"{row.where}: its chat is {type(turns).__name__}, not a list of messages")
    yield from enumerate(turns, 1)


def _turns_of(row: Row, given: Mapping[FieldName, Columns]) -> Any:
    if "messages" in given:
        fields = columns.fields_of(
            row, columns.Layout(_given(given, ("messages",)), frozenset(), every=False), Wanted()
        )
        return fields.get("messages", [])
    for name in _LISTS:
        if name in row.values:
            return row.values[name]
    return None


def _alpaca(row: Row) -> list[dict[str, Any]]:
    asked = _string(row, "instruction")
    more = row.values.get("input") or ""
    if not isinstance(more, str):
        raise DataError(f"{row.where}: 'input' is {type(more).__name__}, not text")
    messages = []
    for pair in row.values.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2):
            raise DataError(f"{row.where}: 'history' is not pairs of a question and its answer")
        messages += _pair(*pair)
    asked = f"{asked}\n{more}" if more.strip() else asked
    messages += _pair(asked, _string(row, "output"))
    return [message(m, f"{row.where}, message {n}") for n, m in enumerate(messages, 1)]


def _two_turns(row: Row, given: Mapping[FieldName, Columns]) -> list[dict[str, Any]]:
    layout = columns.layout_of(row, _given(given, ("source", "target")), _TURNS)
    fields = columns.fields_of(row, layout, _TURNS)
    turns = _pair(fields["source"], fields["target"])
    return [message(m, f"{row.where}, message {n}") for n, m in enumerate(turns, 1)]


def _pair(question: Any, answer: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _string(row: Row, name: str) -> str:
    value = row.values.get(name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{row.where}: '{name}' is empty or no text")
    return value


def _given(
    columns: Mapping[FieldName, Columns], names: tuple[FieldName, ...]
) -> dict[FieldName, Columns]:
    return {field: name for field, name in columns.items() if field in names}


def _name(given: Mapping[FieldName, Columns], field: FieldName) -> str:
    name = given.get(field, field)
    return name if isinstance(name, str) else field
