"""One message of a chat, checked: roles, contents, calls of tools. Unknown keys are refused."""

from __future__ import annotations

import difflib
import json
from typing import Any

from trainer.data.file_sources import is_text
from trainer.errors import DataError

ROLES = ("system", "developer", "user", "assistant", "tool")
_KEYS = (
    "role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "thinking",
    "refusal", "weight",
)  # fmt: skip
# Source: LLaMA-Factory's data/README.md and FastChat's conversations (2026-08)
SHAREGPT_ROLES = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "bot": "assistant", "chatgpt": "assistant", "model": "assistant", "system": "system",
    "observation": "tool", "tool": "tool", "function_response": "tool",
}  # fmt: skip


def message(given: Any, where: str) -> dict[str, Any]:
    """Raises: DataError for an unknown key or role, or a message that says nothing."""
    if not isinstance(given, dict):
        raise DataError(f"{where} is {type(given).__name__}, not an object with role and content")
    for key in given:
        if key not in _KEYS:
            raise DataError(f"{where} has an unknown key '{key}'{_near(key, _KEYS)}")
    role = given.get("role")
    if role not in ROLES:
        raise DataError(f"{where} has the role {role!r}; known are {', '.join(ROLES)}")
    kept = {key: value for key, value in given.items() if value is not None}
    calls = kept.pop("tool_calls", None)
    if calls:
        kept["tool_calls"] = _calls(calls, where)
    kept["content"] = _content(given.get("content"), where, may_be_empty=bool(calls))
    return kept


def sharegpt_message(given: Any, where: str) -> dict[str, Any]:
    """Raises: DataError as `message`."""
    if not isinstance(given, dict):
        raise DataError(f"{where} is {type(given).__name__}, not an object with from and value")
    for key in given:
        if key not in ("from", "value", "weight"):
            raise DataError(f"{where} has an unknown key '{key}'{_near(key, ('from', 'value'))}")
    speaker, value = given.get("from"), given.get("value")
    weight = {"weight": given["weight"]} if given.get("weight") is not None else {}
    if speaker == "function_call":
        calls = _json(value, where, "its call of a tool")
        calls = calls if isinstance(calls, list) else [calls]
        return message({"role": "assistant", "tool_calls": calls, **weight}, where)
    role = SHAREGPT_ROLES.get(str(speaker))
    if role is None:
        known = ", ".join([*SHAREGPT_ROLES, "function_call"])
        raise DataError(f"{where} is from {speaker!r}; known are {known}")
    return message({"role": role, "content": value, **weight}, where)


def tools_of(value: Any, where: str) -> list[dict[str, Any]]:
    """The row's tools, given as a list or as JSON text of one."""
    if not value:
        return []
    tools = _json(value, where, "'tools'") if isinstance(value, str) else value
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise DataError(f"{where}: 'tools' is no list of descriptions of tools")
    return tools


def _content(value: Any, where: str, *, may_be_empty: bool) -> str:
    if isinstance(value, list):
        value = "".join(_part(part, where) for part in value)
    if value is None and may_be_empty:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{where}: its content is {type(value).__name__}, not text")
    if not value.strip() and not may_be_empty:
        raise DataError(f"{where}: its content is empty")
    if not is_text(value):
        raise DataError(f"{where} holds half a surrogate pair, which is no text")
    return value


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None
    if not isinstance(text, str):
        raise DataError(f"{where} has a part that is no text; pictures and sounds are not read")
    return text


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise DataError(f"{where}: 'tool_calls' is {type(calls).__name__}, not a list")
    return [_call(call, where) for call in calls]


def _call(call: Any, where: str) -> dict[str, Any]:
    """{"type": "function", "function": {"name", "arguments"}}; arguments as an object, for
    templates write them with tojson and would quote a text twice."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise DataError(f"{where}: a call of a tool has no name")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        arguments = _json(arguments, where, f"the arguments of {function['name']}")
    if not isinstance(arguments, dict):
        raise DataError(f"{where}: the arguments of {function['name']} are no object")
    kept = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    made = {"name": function["name"], "arguments": arguments}
    return {**kept, "type": "function", "function": made}


def _json(text: Any, where: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError) as e:
        raise DataError(f"{where}: {what} is not JSON ({e})") from e


def _near(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1)
    return f"; is it '{near[0]}'?" if near else f"; known are {', '.join(known)}"
