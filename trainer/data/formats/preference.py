"""Pairs of answers, one preferred: prompt, chosen, rejected, as texts or all three as messages.

The prompt may be a column of its own, or what both chats begin with.
"""

from __future__ import annotations

from typing import Any

from trainer.data.formats.messages import SHAREGPT_ROLES, message, sharegpt_message
from trainer.data.formats.rows import Row
from trainer.errors import DataError

_ANSWER = "\n\nAssistant:"  # Anthropic's hh-rlhf: chats as one text


def with_pair(fields: dict[str, Any], row: Row) -> dict[str, Any]:
    """The fields with prompt, chosen and rejected of one kind: all texts, or all messages.

    Raises: DataError naming file and row, if an answer is empty, both are the same, or the chats
    begin differently.
    """
    if "prompt" not in fields and "conversations" in row.values:
        fields["prompt"] = row.values["conversations"]
    kinds = {type(fields[name]) for name in ("chosen", "rejected")}
    if kinds == {str}:
        pair = _texts(fields, row)
    elif kinds <= {list, dict}:
        pair = _chats(fields, row)
    else:
        raise DataError(f"{row.where}: 'chosen' and 'rejected' are not both texts or both chats")
    if pair["chosen"] == pair["rejected"]:
        raise DataError(f"{row.where}: 'chosen' and 'rejected' are the same")
    return fields | pair


def _texts(fields: dict[str, Any], row: Row) -> dict[str, Any]:
    chosen, rejected = fields["chosen"], fields["rejected"]
    prompt = fields.get("prompt")
    if isinstance(prompt, list):
        chosen, rejected = ({"role": "assistant", "content": t} for t in (chosen, rejected))
        return _chats(fields | {"chosen": chosen, "rejected": rejected}, row)
    if prompt is None:
        end = chosen.rfind(_ANSWER) + len(_ANSWER)
        if _ANSWER not in chosen or chosen[:end] != rejected[:end]:
            raise DataError(
                f"{row.where} has no prompt, and its answers do not begin with the same one; name "
                "its column: columns.prompt=NAME"
            )
        prompt, chosen, rejected = chosen[:end], chosen[end:], rejected[end:]
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text.strip():
            raise DataError(f"{row.where}: '{name}' is empty")
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _chats(fields: dict[str, Any], row: Row) -> dict[str, Any]:
    chosen = _messages(fields["chosen"], row, "chosen")
    rejected = _messages(fields["rejected"], row, "rejected")
    prompt = fields.get("prompt")
    asked = [] if prompt is None else _prompt(prompt, row)
    if asked and chosen[: len(asked)] != asked:
        chosen, rejected = asked + chosen, asked + rejected
    shared = _shared(chosen, rejected)
    if not shared:
        raise DataError(f"{row.where}: the two chats do not begin with the same message")
    answers = chosen[shared:], rejected[shared:]
    for name, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer or answer[0]["role"] != "assistant":
            raise DataError(f"{row.where}: '{name}' does not go on with an assistant's message")
    return {"prompt": chosen[:shared], "chosen": answers[0], "rejected": answers[1]}


def _prompt(prompt: Any, row: Row) -> list[dict[str, Any]]:
    if isinstance(prompt, str):
        return [message({"role": "user", "content": prompt}, f"{row.where}, prompt")]
    return _messages(prompt, row, "prompt")


def _messages(value: Any, row: Row, name: str) -> list[dict[str, Any]]:
    given = value if isinstance(value, list) else [value]
    made = []
    for number, one in enumerate(given, 1):
        where = f"{row.where}, {name}, message {number}"
        speaks = isinstance(one, dict) and one.get("from") in SHAREGPT_ROLES
        made.append(sharegpt_message(one, where) if speaks else message(one, where))
    if not made:
        raise DataError(f"{row.where}: '{name}' is empty")
    return made


def _shared(chosen: list[dict[str, Any]], rejected: list[dict[str, Any]]) -> int:
    """Messages with which both begin, up to the last that is no assistant's."""
    count = 0
    for one, other in zip(chosen, rejected, strict=False):
        if one != other:
            break
        count += 1
    while count and chosen[count - 1]["role"] == "assistant":
        count -= 1
    return count
